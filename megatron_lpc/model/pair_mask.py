"""Who may attend to whom where a row holds more than one sequence: shared prompts and packed pairs.

Made of `PackingLayout.stacked`, which says what each token belongs to. As a plain tensor that goes through megatron-core's recomputation like
any attention mask; what the attention of a device wants is made of it here, once a micro-batch. With a window of w, a query sees those
of its keys that are less than w positions back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

_KEPT = 16
"""Micro-batches whose masks are kept: a pipeline's recomputation comes back to as many as are in flight."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a row that attend to no others and are attended by no others."""

    row: int
    start: int
    stop: int
    mask: Tensor | None
    """[stop - start, stop - start] bool; None: causal."""


class MaskCache:
    """Whatever `make` makes of a layout, for the micro-batches last seen."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self._make = make
        self._made: OrderedDict[int, tuple[Tensor, Any]] = OrderedDict()

    def __call__(self, layout: Tensor) -> Any:
        # By address, for recomputation hands on a detached alias. The entry keeps the memory from being given to another layout.
        address = layout.data_ptr()
        if address not in self._made:
            self._made[address] = (layout, self._make(layout))
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        return self._made[address][1]


def visible(documents: Tensor, positions: Tensor, window: int | None = None) -> Tensor:
    """[..., S, S] bool of documents and positions [..., S]: True where the query (second last axis) may attend to the key."""
    query, key = documents[..., :, None], documents[..., None, :]
    index = torch.arange(documents.size(-1), device=documents.device)
    seen = (index[:, None] >= index) & _reads(query, key)
    if window is not None:
        seen &= positions[..., :, None] - positions[..., None, :] < window
    return seen


def _reads(own: Tensor, other: Tensor) -> Tensor:
    """Whether tokens of document `own` may attend to those of `other`: the same one, or the shared prompt of its pair."""
    return (own == other) | (other == own.div(3, rounding_mode="floor") * 3)


def spans(layout: Tensor, window: int | None = None) -> list[Span]:
    """The spans of all rows, in order, without padding. Waits for the device: for CPU layouts."""
    found = []
    for row, (documents, positions) in enumerate(zip(*layout, strict=True)):
        # A pair with a shared prompt is one span, each sequence of one without is a span of its own.
        pairs = documents.div(3, rounding_mode="floor")
        shared = torch.isin(pairs, pairs[documents % 3 == 0])
        _, lengths = torch.where(shared, pairs * 3, documents).unique_consecutive(return_counts=True)
        stop = 0
        for length in lengths.tolist():
            start, stop = stop, stop + length
            if documents[start] < 0:
                continue
            causal = not shared[start] and (window is None or length <= window)
            mask = None if causal else visible(documents[start:stop], positions[start:stop], window)
            found.append(Span(row, start, stop, mask))
    return found


def block_mask(layout: Tensor, window: int | None = None) -> Any:
    """FlexAttention's block mask of a layout."""
    from torch.nn.attention.flex_attention import create_block_mask

    documents, positions = layout

    def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & _reads(documents[row, query], documents[row, key])
        return seen if window is None else seen & (positions[row, query] - positions[row, key] < window)

    rows, length = documents.shape
    return create_block_mask(may_attend, rows, None, length, length, device=documents.device)


def packed_sequences(layout: Tensor) -> PackedSeqParams:
    """TransformerEngine's description of a layout of one row: where its sequences begin, padding a sequence of its own.

    Raises ValueError for several rows and for shared prompts, which it cannot describe.
    """
    documents = layout[0]
    if documents.size(0) != 1 or ((documents >= 0) & (documents % 3 == 0)).any():
        raise ValueError("TransformerEngine takes packed rows (--pack-to) of sequences that share no prompt")
    _, lengths = documents[0].unique_consecutive(return_counts=True)
    edges = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    longest = documents.size(1)  # An upper bound, which no device has to be waited for.
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=edges, cu_seqlens_kv=edges, max_seqlen_q=longest, max_seqlen_kv=longest
    )
