"""Attention with a soft cap on its scores, in plain PyTorch: torch's fused attention has none on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_lpc.model.packing_masks import QUERY_BLOCK


def capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, softcap: float
) -> Tensor:
    """softmax(c tanh(scale q k / c)) v, with scores and softmax in fp32.

    Block by block, and recomputed in the backward pass, so that no more than `QUERY_BLOCK` x Sk scores exist.

    Args:
        query: [R, h, Sq, D].
        key, value: [R, g, Sk, D], of g query groups.
        mask: [Sq, Sk] bool; None: causal, with as many queries as keys.
        scale: 1 / sqrt(D) when unset.
        softcap: c.

    Returns:
        [R, h, Sq, D] in the dtype of `value`.
    """
    scale = query.size(-1) ** -0.5 if scale is None else scale
    contexts = []
    for start in range(0, query.size(2), QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, query.size(2))
        keys = slice(None)
        if mask is None:
            keys = slice(stop)
            seen = torch.arange(stop, device=query.device) <= torch.arange(start, stop, device=query.device)[:, None]
        else:
            seen = mask[start:stop]
        block = (query[:, :, start:stop], key[:, :, keys], value[:, :, keys], seen, scale, softcap)
        contexts.append(checkpoint(_attend, *block, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(contexts, dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float, softcap: float) -> Tensor:
    grouped = query.unflatten(1, (key.size(1), -1))
    scores = (grouped @ key[:, :, None].transpose(-1, -2)).float() * (scale / softcap)
    capped = softcap * torch.tanh(scores)
    weights = capped.masked_fill(~seen, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2)
