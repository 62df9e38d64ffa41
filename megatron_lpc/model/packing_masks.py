"""Which tokens may attend to which where a sequence is packed or shares a prompt.

Everything follows from the batch's `PackingLayout`. Its stacked tensor goes through megatron-core, activation
recomputation included, in the place of an attention mask; the attention of each device builds what it needs from it,
once per micro-batch (see `mask_cache`). With a sliding window of w, a query attends to those of its keys whose
position is less than w before its own.

Shape legend: R sequences of S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.model.key_ranges import KeyRanges, key_ranges

QUERY_BLOCK = 256
"""Queries of a block where a window is split: more of them need fewer calls, and compute more that the mask hides."""

_MAX_SEQLEN_MULTIPLE = 64
"""As TransformerEngine rounds where it finds the longest document itself, which makes the host wait."""


@dataclass(frozen=True)
class AttentionBlock:
    """Consecutive queries of one sequence, and the consecutive keys that hold all they attend to."""

    sequence: int
    """Index of the sequence in the batch."""
    start: int
    """First query."""
    stop: int
    """End of the queries and of the keys."""
    key_start: int
    """First key."""
    mask: Tensor | None
    """[stop - start, stop - key_start] bool; None: causal, from the same token on."""


def visible(document_ids: Tensor, position_ids: Tensor, window: int | None = None) -> Tensor:
    """[..., S, S] bool of ids [..., S]: True where the query (second last axis) may attend to the key."""
    index = torch.arange(document_ids.size(-1), device=document_ids.device)
    causal = index[:, None] >= index
    seen = causal & _may_read(document_ids[..., :, None], document_ids[..., None, :])
    if window is not None:
        distance = position_ids[..., :, None] - position_ids[..., None, :]
        seen &= distance < window
    return seen


def _may_read(query_document: Tensor, key_document: Tensor) -> Tensor:
    """Whether tokens of one document may attend to those of another: the same one, or the shared prompt of its pair."""
    shared_prompt = query_document.div(3, rounding_mode="floor") * 3
    return (query_document == key_document) | (key_document == shared_prompt)


def attention_blocks(packing_layout: PackingLayout, window: int | None = None) -> list[AttentionBlock]:
    """The blocks of all sequences, in order, without padding. Waits for the device: for layouts on the CPU.

    A pair with a shared prompt is one block; without one, each of its two responses is a block of its own. What is
    longer than the window is split by queries, so that no mask is larger than `QUERY_BLOCK` times the keys in reach.
    """
    ranges = key_ranges(packing_layout, window)
    blocks = []
    for sequence, (document_ids, position_ids) in enumerate(zip(*packing_layout.stacked, strict=True)):
        pair = document_ids.div(3, rounding_mode="floor")
        pairs_with_shared_prompt = pair[document_ids % 3 == 0]
        shares_prompt = torch.isin(pair, pairs_with_shared_prompt)
        block_ids = torch.where(shares_prompt, pair * 3, document_ids)
        _, lengths = block_ids.unique_consecutive(return_counts=True)
        stop = 0
        for length in lengths.tolist():
            start, stop = stop, stop + length
            if document_ids[start] < 0:  # Padding.
                continue
            if window is not None and length > window:
                blocks += _window_blocks(ranges.of_sequence(sequence), sequence, start, stop)
                continue
            mask = None
            if shares_prompt[start]:
                mask = visible(document_ids[start:stop], position_ids[start:stop], window)
            blocks.append(AttentionBlock(sequence, start, stop, start, mask))
    return blocks


def _window_blocks(ranges: KeyRanges, sequence: int, start: int, stop: int) -> list[AttentionBlock]:
    """Blocks of `QUERY_BLOCK` queries each, of the tokens start … stop - 1 of a sequence with these [S] ranges."""
    blocks = []
    for first in range(start, stop, QUERY_BLOCK):
        end = min(first + QUERY_BLOCK, stop)
        of_queries = ranges.of_queries(first, end)
        key_start = of_queries.first_key()
        mask = of_queries.hold(torch.arange(key_start, end))
        blocks.append(AttentionBlock(sequence, first, end, key_start, mask))
    return blocks


def packed_seq_params(packing_layout: PackingLayout) -> PackedSeqParams:
    """TransformerEngine's description of one packed sequence: where each document begins; padding is a document too.

    Never waits for the device. The longest document is rounded up, for attention plans are made per such length.

    Raises:
        ValueError: there are several sequences, or prompts are shared, which it cannot describe.
    """
    cu_seqlens, longest = packing_layout.cu_seqlens, packing_layout.max_seqlen
    if cu_seqlens is None or longest is None:
        raise ValueError("TransformerEngine takes one packed sequence (--pack-to) whose responses share no prompt")
    max_seqlen = -(-longest // _MAX_SEQLEN_MULTIPLE) * _MAX_SEQLEN_MULTIPLE
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )
