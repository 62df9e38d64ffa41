"""FlexAttention's block mask, made from the ranges of keys: the S x S mask never exists.

Shape legend: R sequences of S tokens in blocks of `BLOCK` tokens, Q blocks of queries, K = Q blocks of keys.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.model.key_ranges import KeyRanges, key_ranges

BLOCK = 128
"""Tokens of a block, as FlexAttention's kernels take them."""


def flex_block_mask(packing_layout: PackingLayout, window: int | None = None) -> BlockMask:
    """The `BlockMask` of a packing layout, on its device, without a wait for it. Memory: R S^2 / 32 bytes at the peak.

    It is equal to what torch's `create_block_mask` finds in 10 R S^2 bytes.
    """
    ranges = key_ranges(packing_layout, window)
    own_start, prompt_start, prompt_stop = ranges.own_start, ranges.prompt_start, ranges.prompt_stop

    def may_attend(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (own_start[sequence, query] <= key) & (key <= query)
        prompt = (prompt_start[sequence, query] <= key) & (key < prompt_stop[sequence, query])
        return own | prompt

    length = packing_layout.document_ids.size(1)
    touched, covered = _touched_and_covered(ranges)
    partial_number, partial_indices = _ordered(touched & ~covered)
    full_number, full_indices = _ordered(covered)
    return BlockMask.from_kv_blocks(
        partial_number,
        partial_indices,
        full_number,
        full_indices,
        BLOCK_SIZE=BLOCK,
        mask_mod=may_attend,
        seq_lengths=(length, length),
    )


@functools.lru_cache(maxsize=8)
def sliding_window_block_mask(num_sequences: int, length: int, window: int, device: torch.device) -> BlockMask:
    """The `BlockMask` of sequences of one document each."""
    position_ids = torch.arange(length, device=device).expand(num_sequences, length)
    layout = PackingLayout(torch.stack((torch.ones_like(position_ids), position_ids)))
    return flex_block_mask(layout, window)


def _touched_and_covered(ranges: KeyRanges) -> tuple[Tensor, Tensor]:
    """[R, Q, K] bool each: whether any query of a block reads any key of the other, and whether all read all."""
    length = ranges.query.size(1)
    num_blocks = -(-length // BLOCK)
    first_key = torch.arange(num_blocks, device=ranges.query.device) * BLOCK
    touched, covered = [], []
    for first, end in ((ranges.own_start, ranges.query + 1), (ranges.prompt_start, ranges.prompt_stop)):
        start, stop = _by_query_block(first, num_blocks), _by_query_block(end, num_blocks)
        touched.append(((start < first_key + BLOCK) & (stop > first_key) & (start < stop)).any(dim=2))
        covered.append((start <= first_key) & (stop >= first_key + BLOCK))
    return touched[0] | touched[1], (covered[0] | covered[1]).all(dim=2)


def _by_query_block(tensor: Tensor, num_blocks: int) -> Tensor:
    """[R, S] -> [R, Q, BLOCK, 1]. The queries that fill the last block up are at 0: their ranges are empty."""
    filled = pad(tensor, (0, num_blocks * BLOCK - tensor.size(1)))
    return filled.view(-1, num_blocks, BLOCK, 1)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[R, 1, Q] and [R, 1, Q, K] int32 of [R, Q, K] bool: how many, and which, the true ones first."""
    as_integers = blocks[:, None].int()
    indices = as_integers.argsort(dim=-1, descending=True, stable=True)
    return as_integers.sum(dim=-1, dtype=torch.int32), indices.int()
