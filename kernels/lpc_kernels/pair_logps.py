"""Summed log-probabilities of responses, chosen and rejected, from hidden states, latents and the LM head."""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.token_logps import Head, TokenLogps


@overload
def pair_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    segments: Tensor,
    num_segments: int,
    *,
    z: Tensor | None = ...,
    vocab_start: int = ...,
    vocab_size: int | None = ...,
    tp_group: dist.ProcessGroup | None = ...,
    chunk_size: int = ...,
    logit_softcap: float | None = ...,
    temperature: float = ...,
    return_token_logps: Literal[False] = ...,
) -> Tensor: ...


@overload
def pair_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    segments: Tensor,
    num_segments: int,
    *,
    z: Tensor | None = ...,
    vocab_start: int = ...,
    vocab_size: int | None = ...,
    tp_group: dist.ProcessGroup | None = ...,
    chunk_size: int = ...,
    logit_softcap: float | None = ...,
    temperature: float = ...,
    return_token_logps: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def pair_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    segments: Tensor,
    num_segments: int,
    *,
    z: Tensor | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
    chunk_size: int = 1024,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
    return_token_logps: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sum over each response of log softmax(cap(W (h_t + z)) / temperature)[target], with cap(x) = c tanh(x / c) or x.

    hidden: [N, H], only rows that carry loss. weight: [V_local, H], this rank's rows of the head from global word `vocab_start` on; the
    shards of the ranks may differ in size. targets: [N] int64 global words. segments: [N] int64 response of each row, ascending, in
    [0, num_segments). z: [P, H], or [L, P, H] for L latents at the price of little more than one; response s belongs to pair s % P.
    vocab_size: words from this one on are padding and have no probability (a target there, or below 0, has log-prob -inf); None: no
    padding. chunk_size: rows whose logits are in memory at one time; it changes results by rounding only.

    Returns the sums, fp32 (fp64 for fp64 inputs), [num_segments] or, with z of [L, P, H], [L, num_segments]; a response without rows
    has sum 0. With `return_token_logps` also the log-probs of the rows, [N] or [L, N]. Differentiable, once, in hidden, weight and z.
    Large products run in the dtype of the weight, everything else in fp32 (fp64). Two runs give the same bits.

    Collectives on `tp_group` (all inputs but weight and vocab_start the same on all its ranks): forward, a MAX and a SUM all-reduce
    of fp32, 2 L N and L N numbers; backward, a SUM all-reduce of the hidden gradient [N, H] and one of the z gradient [L, P, H], each
    only if that gradient is asked for. So the gradients of hidden and z are complete on every rank (the caller must not reduce them
    again); the gradient of weight is local, accumulated in fp32 over the chunks.

    Raises ValueError for shapes, dtypes and options that do not fit, RuntimeError for segments not ascending or out of range.
    """
    _check(hidden, weight, targets, segments, num_segments, z, vocab_start, vocab_size, chunk_size, logit_softcap, temperature)
    columns = weight.size(0) if vocab_size is None else min(max(vocab_size - vocab_start, 0), weight.size(0))
    group = tp_group if tp_group is not None and tp_group.size() > 1 else None
    if group is None and columns == 0:
        raise ValueError(f"pair_logps: vocab_size ({vocab_size}) leaves no word of {weight.size(0)} from vocab_start ({vocab_start}) on")
    head = Head(vocab_start, columns, group, chunk_size, logit_softcap, temperature)
    latents = z[None] if z is not None and z.dim() == 2 else z
    token_logps: Tensor = TokenLogps.apply(hidden, weight, latents, targets, segments, head)
    sums = _segment_sums(token_logps, segments, num_segments)
    if z is None or z.dim() == 2:
        sums, token_logps = sums[0], token_logps[0]
    return (sums, token_logps) if return_token_logps else sums


def _segment_sums(token_logps: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """[L, num_segments], summed in fp64 (a margin is a small difference of long sums) and in row order (the same bits in every run)."""
    latents = token_logps.size(0)
    edges = torch.searchsorted(segments.contiguous(), torch.arange(num_segments + 1, device=segments.device))
    sums = torch.segment_reduce(token_logps.double().flatten(), "sum", lengths=edges.diff().repeat(latents), initial=0, unsafe=True)
    return sums.view(latents, num_segments).to(token_logps.dtype)


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    segments: Tensor,
    num_segments: int,
    z: Tensor | None,
    vocab_start: int,
    vocab_size: int | None,
    chunk_size: int,
    logit_softcap: float | None,
    temperature: float,
) -> None:
    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"pair_logps: {message}")

    need(hidden.dim() == 2, f"hidden must be [N, H], got {list(hidden.shape)}")
    rows, width = hidden.shape
    need(weight.dim() == 2 and weight.size(1) == width, f"weight must be [V_local, {width}] as hidden's width, got {list(weight.shape)}")
    need(weight.dtype == hidden.dtype, f"hidden and weight must have one dtype, got {hidden.dtype} and {weight.dtype}")
    need(hidden.is_floating_point(), f"hidden and weight must be floating point, got {hidden.dtype}")
    for name, index in (("targets", targets), ("segments", segments)):
        fits = index.shape == (rows,) and index.dtype == torch.int64
        need(fits, f"{name} must be [{rows}] int64, one for each row of hidden, got {list(index.shape)} {index.dtype}")
    need(num_segments >= 1, f"num_segments must be at least 1, got {num_segments}")
    if z is not None:
        need(z.dim() in (2, 3) and z.size(-1) == width, f"z must be [P, {width}] or [L, P, {width}], got {list(z.shape)}")
        pairs = z.size(-2)
        need(pairs > 0 and num_segments % pairs == 0, f"num_segments ({num_segments}) must be a multiple of z's {pairs} pairs")
    need(vocab_start >= 0, f"vocab_start must not be negative, got {vocab_start}")
    need(vocab_size is None or vocab_size >= 1, f"vocab_size must be at least 1, got {vocab_size}")
    need(chunk_size >= 1, f"chunk_size must be at least 1, got {chunk_size}")
    need(logit_softcap is None or logit_softcap > 0, f"logit_softcap must be positive, got {logit_softcap}")
    need(temperature > 0, f"temperature must be positive, got {temperature}")
    if rows:
        ascending = (segments.diff() >= 0).all() & (segments[0] >= 0) & (segments[-1] < num_segments)
        # Without waiting for a GPU: it stops by itself.
        torch._assert_async(ascending, f"pair_logps: segments must be ascending and in [0, {num_segments})")
