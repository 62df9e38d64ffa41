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
"""Queries of a block with a mask: more of them need fewer calls, and compute more that the mask hides."""

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


def attention_blocks(packing_layout: PackingLayout, window: int | None = None) -> list[AttentionBlock]:
    """The blocks of all sequences, in order, without padding. Waits for the device: for layouts on the CPU.

    A response with a prompt of its own is one block, without a mask. A pair with a shared prompt and a response longer
    than the window are split by queries, so that no mask is larger than `QUERY_BLOCK` times the keys in reach.
    """
    ranges = key_ranges(packing_layout, window)
    blocks = []
    for sequence, document_ids in enumerate(packing_layout.document_ids):
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
            if shares_prompt[start] or (window is not None and length > window):
                blocks += _masked_blocks(ranges.of_sequence(sequence), sequence, start, stop)
            else:
                blocks.append(AttentionBlock(sequence, start, stop, start, None))
    return blocks


def _masked_blocks(ranges: KeyRanges, sequence: int, start: int, stop: int) -> list[AttentionBlock]:
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
