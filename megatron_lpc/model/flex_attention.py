"""FlexAttention on a GPU: the kernels that it runs, and its compilation.

Shape legend: R sequences of S tokens, h heads of this rank, g query groups of this rank, D channels per head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from megatron_lpc.model.flash_backend import flash_query_block

FlexBackend = Literal["auto", "triton", "flash"]
"""`auto` is torch's own choice; `flash` is FlashAttention-4, of the package `flash-attn-4`."""

RECOMPILE_LIMIT = 64
"""Graphs of FlexAttention in one process: one or several sequences, one or several blocks, with gradients or without,
and each once more when torch finds a size to vary."""
QUERY_BLOCK = 128
"""Queries of a block in the block mask of torch's own kernels."""


@functools.cache
def query_block(backend: FlexBackend, channels: int) -> int:
    """Queries of a block in the block mask, for heads of so many channels.

    Raises:
        ConfigError: the backend is `flash`, and FlashAttention-4 does not run here.
    """
    return flash_query_block(channels) if backend == "flash" else QUERY_BLOCK


def attend_by_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_mask: BlockMask,
    scale: float | None,
    softcap: float | None = None,
    backend: FlexBackend,
) -> Tensor:
    """[R, h, S, D] of queries [R, h, S, D], keys and values [R, g, S, D].

    Args:
        softcap: c of a soft cap c tanh(x / c) on the scores.

    Raises:
        RuntimeError: torch would compile more kinds of inputs than `RECOMPILE_LIMIT`, or has no such backend.
    """
    try:
        return compiled_flex_attention()(
            query,
            key,
            value,
            score_mod=None if softcap is None else _soft_cap(softcap),
            block_mask=block_mask,
            scale=scale,
            enable_gqa=query.size(1) != key.size(1),
            kernel_options={"BACKEND": backend.upper()},
        )
    except FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"FlexAttention was compiled for {torch._dynamo.config.recompile_limit} kinds of inputs, and the next are "
            f"queries of the shape {tuple(query.shape)}; let sequences have fewer lengths by --pad-to-multiple-of or "
            "--pack-to"
        ) from error


@functools.cache
def _soft_cap(cap: float) -> Callable[..., Tensor]:
    """One function for all layers, so that they share a graph."""
    return lambda score, sequence, head, query, key: cap * torch.tanh(score / cap)


@functools.cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """`flex_attention`, compiled; without a fall-back."""
    # Uncompiled, FlexAttention holds the S x S scores, and past its limit of recompilations dynamo runs it so, with a
    # warning. One graph and no other (`fullgraph`): then the limit is an error.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    return torch.compile(flex_attention, fullgraph=True)
