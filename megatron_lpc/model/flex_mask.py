"""FlexAttention's block mask, made from the ranges of keys: the S x S mask never exists.

Shape legend: R sequences of S tokens, in Q blocks of queries and K blocks of `KEY_BLOCK` keys.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.model.flex_attention import QUERY_BLOCK
from megatron_lpc.model.key_ranges import KeyRanges, key_ranges

KEY_BLOCK = 128
"""Keys of a block, as FlexAttention's kernels take them; see `flex_attention.query_block` for queries."""


def flex_block_mask(
    packing_layout: PackingLayout, window: int | None = None, query_block: int = QUERY_BLOCK
) -> BlockMask:
    """The `BlockMask` of a packing layout, on its device, without a wait for it. Memory: R S^2 / 32 bytes at the peak.

    It is equal to what torch's `create_block_mask` finds in 10 R S^2 bytes.
    """
    ranges = key_ranges(packing_layout, window)
    # Of the type of FlexAttention's indices: FlashAttention-4 compares both as they are.
    own_start, prompt_start, prompt_stop = (
        tensor.int() for tensor in (ranges.own_start, ranges.prompt_start, ranges.prompt_stop)
    )

    def may_attend(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (own_start[sequence, query] <= key) & (key <= query)
        prompt = (prompt_start[sequence, query] <= key) & (key < prompt_stop[sequence, query])
        return own | prompt

    length = packing_layout.document_ids.size(1)
    touched, covered = _touched_and_covered(ranges, query_block)
    partial_number, partial_indices = _ordered(touched & ~covered)
    full_number, full_indices = _ordered(covered)
    return BlockMask.from_kv_blocks(
        partial_number,
        partial_indices,
        full_number,
        full_indices,
        BLOCK_SIZE=(query_block, KEY_BLOCK),
        mask_mod=may_attend,
        seq_lengths=(length, length),
    )


@functools.lru_cache(maxsize=8)
def sliding_window_block_mask(
    num_sequences: int, length: int, window: int | None, device: torch.device, query_block: int = QUERY_BLOCK
) -> BlockMask:
    """The `BlockMask` of sequences of one document each; causal without a window."""
    position_ids = torch.arange(length, device=device).expand(num_sequences, length)
    layout = PackingLayout(torch.stack((torch.ones_like(position_ids), position_ids)))
    return flex_block_mask(layout, window, query_block)


def _touched_and_covered(ranges: KeyRanges, query_block: int) -> tuple[Tensor, Tensor]:
    """[R, Q, K] bool each: whether any query of a block reads any key of the other, and whether all read all."""
    length = ranges.query.size(1)
    first_key = torch.arange(0, length, KEY_BLOCK, device=ranges.query.device)
    touched, covered = [], []
    for first, end in ((ranges.own_start, ranges.query + 1), (ranges.prompt_start, ranges.prompt_stop)):
        start, stop = _by_query_block(first, query_block), _by_query_block(end, query_block)
        touched.append(((start < first_key + KEY_BLOCK) & (stop > first_key) & (start < stop)).any(dim=2))
        covered.append((start <= first_key) & (stop >= first_key + KEY_BLOCK))
    return touched[0] | touched[1], (covered[0] | covered[1]).all(dim=2)


def _by_query_block(tensor: Tensor, query_block: int) -> Tensor:
    """[R, S] -> [R, Q, query_block, 1]. The queries that fill the last block up are at 0: their ranges are empty."""
    missing = -tensor.size(1) % query_block
    return pad(tensor, (0, missing)).unflatten(1, (-1, query_block)).unsqueeze(-1)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[R, 1, Q] and [R, 1, Q, K] int32 of [R, Q, K] bool: how many, and which, the true ones first."""
    as_integers = blocks[:, None].int()
    indices = as_integers.argsort(dim=-1, descending=True, stable=True)
    return as_integers.sum(dim=-1, dtype=torch.int32), indices.int()
