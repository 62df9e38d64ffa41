"""What is done to each row of logits between the large products: the softmax's statistics, and the gradient of the logits, in place.

On Triton for CUDA tensors, and for all with TRITON_INTERPRET=1. Else in PyTorch, a few rows at a time: on a CPU they then stay in its
cache from the first operation to the last. All of it in fp32, or in fp64 for fp64 logits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from lpc_kernels.head import Head
from lpc_kernels.runs import Runs

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_BLOCK = 1 << 19
"""Logits at a time on a CPU."""


def keeps_exponentials(base: Tensor, latents: int, head: Head, entropy: bool) -> bool:
    """Whether `row_stats` can leave exponentials in the place of the logits, for the gradient: in PyTorch, one latent, no soft-cap."""
    return latents == 1 and head.softcap is None and not entropy and wide_in_pytorch(base)


def row_stats(
    base: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    runs: Runs,
    chunk: slice,
    head: Head,
    entropy: bool,
    keep: bool = False,
) -> Tensor:
    """Statistics of the rows' softmaxes over this rank's words.

    base: [C, V] h W^T of the rows of `chunk`. bias: [L, P, V] or None. targets: [C] int64 global words.
    Returns [3, L, C]: the largest logit, the sum of exp(logit - largest), the target's logit (-inf where another rank has it; on a rank
    without words -inf, 0, -inf). With `entropy` [4, L, C], last the sum of exp(logit - largest) (logit - largest).
    keep: base becomes exp(logit - largest), which `keeps_exponentials` must allow.
    """
    if _on_triton(base) and head.columns:
        from lpc_kernels import pair_logps_triton

        return pair_logps_triton.row_stats(base, bias, targets, runs, chunk, head, entropy)
    latents = 1 if bias is None else bias.size(0)
    dtype = torch.promote_types(base.dtype, torch.float32)
    stats = torch.zeros((4 if entropy else 3, latents, base.size(0)), dtype=dtype, device=base.device)
    if head.columns == 0:
        stats[0], stats[2] = -torch.inf, -torch.inf
        return stats
    column = head.locate(targets)[:, None]
    for rows, pair in _blocks(base, runs, chunk):
        for n in range(latents):
            logits = _logits(base[rows], bias, n, pair, head, dtype, keep)
            peak = logits.amax(-1)
            stats[0, n, rows] = peak
            stats[2, n, rows] = logits.gather(1, column[rows].clamp(min=0)).where(column[rows] >= 0, -torch.inf)[:, 0]
            shifted = logits.sub_(peak[:, None])
            if entropy:
                weights = shifted.exp()
                stats[1, n, rows], stats[3, n, rows] = weights.sum(-1), weights.mul_(shifted).sum(-1)
            else:
                stats[1, n, rows] = shifted.exp_().sum(-1)
    return stats


def logits_gradient_(
    base: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    stats: Tensor,
    scale: Tensor,
    runs: Runs,
    chunk: slice,
    head: Head,
    d_bias: Tensor | None,
    own_peak: Tensor | None = None,
) -> None:
    """Turn the logits of a chunk into the gradient of sum over latents and rows of scale * log-prob of the target.

    base: [C, V], overwritten with the gradient by h W^T, rounded once. bias, targets: as in `row_stats`. stats: [>= 2, L, C], over all
    ranks' words. scale: [L, C]. d_bias: [L, P, V] gradient by bias, added to; or None. own_peak: [1, C] largest logits of this rank where
    `row_stats` has left exponentials in base.
    """
    if head.columns == 0:
        return
    if _on_triton(base):
        from lpc_kernels import pair_logps_triton

        pair_logps_triton.logits_gradient_(base, bias, targets, stats, scale, runs, chunk, head, d_bias)
        return
    column = head.locate(targets)[:, None]
    here, mine = column.clamp(min=0), column >= 0
    for rows, pair in _blocks(base, runs, chunk):
        summed: Tensor | None = None
        for n in range(scale.size(0)):
            factor, share = scale[n, rows, None], -scale[n, rows, None] / stats[1, n, rows, None]
            if own_peak is None:
                logits = _logits(base[rows], bias, n, pair, head, scale.dtype, in_place=False)
                slope = head.slope(logits)
                gradient = logits.sub_(stats[0, n, rows, None]).exp_().mul_(share)
            else:
                slope = head.slope(base)
                gradient = base[rows].mul_(share * (own_peak[0, rows, None] - stats[0, 0, rows, None]).exp())
            # d log p[target] = onehot - p, times the coefficient, while still in fp32: bf16 would lose a small 1 - p.
            gradient.scatter_add_(1, here[rows], factor * mine[rows])
            if slope is not None:
                gradient.mul_(slope)
            if d_bias is not None:
                d_bias[n, pair] += gradient.sum(0)
            summed = gradient if summed is None else summed.add_(gradient)
        assert summed is not None
        if own_peak is None:
            base[rows] = summed


def fuses(hidden: Tensor, head: Head) -> bool:
    """Whether `fused_stats` serves: on Triton, but not in fp64, nor where there is nothing to multiply."""
    return _on_triton(hidden) and head.columns > 0 and hidden.dtype != torch.float64


def fused_stats(
    hidden: Tensor,
    words: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    runs: Runs,
    chunk: slice,
    head: Head,
    entropy: bool,
) -> Tensor:
    """`row_stats` of the product of hidden [C, H] and words [V, H], which never reaches memory."""
    from lpc_kernels import pair_logps_triton

    return pair_logps_triton.fused_stats(hidden, words, bias, targets, runs, chunk, head, entropy)


def wide_in_pytorch(tensor: Tensor) -> bool:
    """Whether the work on rows of this is PyTorch's, and its dtype the one of the work, so that what is put back is not rounded."""
    return tensor.dtype in (torch.float32, torch.float64) and not _on_triton(tensor)


def _on_triton(tensor: Tensor) -> bool:
    """Its module is imported where this is true, not before: PyTorch for CPU comes without Triton."""
    return (tensor.is_cuda or _INTERPRETED) and tensor.size(0) > 0


def _logits(
    base: Tensor, bias: Tensor | None, latent: int, pair: int, head: Head, dtype: torch.dtype, in_place: bool
) -> Tensor:
    """[C, V] of rows of one pair: new, or `in_place` of base."""
    if in_place:
        return head.cap_(base if bias is None else base.add_(bias[latent, pair]))
    return head.cap_(base.to(dtype, copy=True) if bias is None else base + bias[latent, pair])


def _blocks(base: Tensor, runs: Runs, chunk: slice) -> Iterator[tuple[slice, int]]:
    """Rows of one pair, few enough; and the pair."""
    size = max(1, _BLOCK // base.size(1)) if base.device.type == "cpu" else base.size(0)
    for span, pair in runs.spans(chunk):
        for start in range(span.start, span.stop, size):
            yield slice(start, min(start + size, span.stop)), pair
