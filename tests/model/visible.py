"""Who may attend to whom, by definition."""

from __future__ import annotations

import torch
from torch import Tensor


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
