"""Which tokens may attend to which where a sequence is packed or shares a prompt.

Everything follows from the batch's `PackingLayout`. Its stacked tensor goes through megatron-core, activation
recomputation included, in the place of an attention mask; the attention of each device builds what it needs from it,
once per micro-batch (see `mask_cache`). With a sliding window of w, a query attends to those of its keys whose
position is less than w before its own.

Shape legend: R sequences of S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_lpc.data.batch import PackingLayout

_MAX_SEQLEN_MULTIPLE = 64
"""As TransformerEngine rounds where it finds the longest document itself, which makes the host wait."""


@dataclass(frozen=True)
class AttentionBlock:
    """Consecutive tokens of one sequence that attend only to each other: a block on the diagonal of the mask."""

    sequence: int
    """Index of the sequence in the batch."""
    start: int
    stop: int
    mask: Tensor | None
    """[stop - start, stop - start] bool; None: causal."""


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

    A pair with a shared prompt is one block; without one, each of its two responses is a block of its own.
    """
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
            mask = None
            if shares_prompt[start] or (window is not None and length > window):
                mask = visible(document_ids[start:stop], position_ids[start:stop], window)
            blocks.append(AttentionBlock(sequence, start, stop, mask))
    return blocks


def flex_block_mask(packing_layout: PackingLayout, window: int | None = None) -> Any:
    """FlexAttention's `BlockMask` of a packing layout."""
    from torch.nn.attention.flex_attention import create_block_mask

    document_ids, position_ids = packing_layout.stacked

    def may_attend(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (query >= key) & _may_read(document_ids[sequence, query], document_ids[sequence, key])
        if window is None:
            return seen
        distance = position_ids[sequence, query] - position_ids[sequence, key]
        return seen & (distance < window)

    num_sequences, length = document_ids.shape
    return create_block_mask(may_attend, num_sequences, None, length, length, device=document_ids.device)


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
