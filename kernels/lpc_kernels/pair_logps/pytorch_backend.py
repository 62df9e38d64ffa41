"""The per-token work in PyTorch: on a CPU a block of few tokens at a time, whose logits stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpc_kernels.pair_logps.backend import LogpsGradient, stats_of_logits
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.softmax_stats import stats_without_vocabulary
from lpc_kernels.pair_logps.vocab_shard import VocabShard

CPU_BLOCK = 1 << 19
"""Logits at a time on a CPU."""


@dataclass(frozen=True)
class _Block:
    """Some loss tokens of one pair."""

    tokens: slice
    """Within the chunk."""
    pair: int


class PyTorchBackend:
    """`Backend` in PyTorch, on any device."""

    def works_in_place(self, dtype: torch.dtype) -> bool:
        return dtype in (torch.float32, torch.float64)

    def keeps_exponentials(self, problem: Problem) -> bool:
        plain = problem.num_latents == 1 and problem.shard.softcap is None and not problem.with_entropy
        return plain and self.works_in_place(problem.hidden.dtype)

    def stats(self, problem: Problem, logits: Tensor, chunk: slice, keep_exponentials: bool = False) -> Tensor:
        num_stats, num_latents, _ = problem.stats_shape
        shape = (num_stats, num_latents, logits.size(0))
        stats = torch.zeros(shape, dtype=problem.stats_dtype, device=logits.device)
        if problem.shard.vocab_local == 0:
            return stats_without_vocabulary(stats)
        local = problem.shard.locate(problem.targets[chunk])[:, None]
        for block in _blocks(problem, logits, chunk):
            for latent in range(num_latents):
                bias = None if problem.bias is None else problem.bias[latent, block.pair]
                if keep_exponentials:
                    capped = _cap_in_place(logits[block.tokens], bias, problem.shard)
                else:
                    capped = _cap_copy(logits[block.tokens], bias, problem.shard, stats.dtype)
                _block_stats(capped, local[block.tokens], stats[:, latent, block.tokens])
        return stats

    def logits_gradient_(self, problem: Problem, logits: Tensor, chunk: slice, gradient: LogpsGradient) -> None:
        if problem.shard.vocab_local == 0:
            return
        local = problem.shard.locate(problem.targets[chunk])[:, None]
        for block in _blocks(problem, logits, chunk):
            if gradient.local_max is None:
                logits[block.tokens] = _block_gradient(problem, logits, local, block, gradient)
            else:
                _block_gradient_of_exponentials_(problem, logits, local, block, gradient)

    def scoring_stats(self, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
        return stats_of_logits(self, problem, chunks)


def _block_stats(logits: Tensor, local: Tensor, out: Tensor) -> None:
    """Statistics of the logits of a block, which are overwritten, into `out` [3 or 4, tokens].

    logits: [tokens, V]. local: [tokens, 1] index of the target in the shard, or -1.
    """
    running_max = logits.amax(-1)
    out[0] = running_max
    out[2] = logits.gather(1, local.clamp(min=0)).where(local >= 0, -torch.inf)[:, 0]
    shifted = logits.sub_(running_max[:, None])
    if out.size(0) == 3:
        out[1] = shifted.exp_().sum(-1)
        return
    exponentials = shifted.exp()
    out[1] = exponentials.sum(-1)
    out[3] = exponentials.mul_(shifted).sum(-1)


def _block_gradient(problem: Problem, logits: Tensor, local: Tensor, block: _Block, gradient: LogpsGradient) -> Tensor:
    """[tokens, V] gradient by h W^T of a block, summed over the latents. local: [C, 1] of the chunk."""
    total: Tensor | None = None
    every_bias = gradient.bias(problem)
    for latent in range(gradient.scale.size(0)):
        bias = None if every_bias is None else every_bias[latent, block.pair]
        capped = _cap_copy(logits[block.tokens], bias, problem.shard, gradient.scale.dtype)
        slope = problem.shard.slope(capped)
        scale = gradient.scale[latent, block.tokens, None]
        running_max, running_sum = gradient.stats[:2, latent, block.tokens, None]
        d_logits = capped.sub_(running_max).exp_().mul_(-scale / running_sum)
        _add_target_(d_logits, local[block.tokens], scale)
        if slope is not None:
            d_logits.mul_(slope)
        if gradient.d_bias is not None:
            gradient.d_bias[latent, block.pair] += d_logits.sum(0)
        total = d_logits if total is None else total.add_(d_logits)
    assert total is not None
    return total


def _block_gradient_of_exponentials_(
    problem: Problem, exponentials: Tensor, local: Tensor, block: _Block, gradient: LogpsGradient
) -> None:
    """`_block_gradient` in place, for one latent, from the exp(logit - local max) that `stats` has left."""
    assert gradient.local_max is not None
    scale = gradient.scale[0, block.tokens, None]
    running_max, running_sum = gradient.stats[:2, 0, block.tokens, None]
    rescale = (gradient.local_max[0, block.tokens, None] - running_max).exp()
    slope = problem.shard.slope(exponentials)
    d_logits = exponentials[block.tokens].mul_(-scale / running_sum * rescale)
    _add_target_(d_logits, local[block.tokens], scale)
    if slope is not None:
        d_logits.mul_(slope)
    if gradient.d_bias is not None:
        gradient.d_bias[0, block.pair] += d_logits.sum(0)


def _add_target_(d_logits: Tensor, local: Tensor, scale: Tensor) -> None:
    """d log p[target] = onehot - p, times the scale, while still in fp32: bf16 would lose a small 1 - p."""
    d_logits.scatter_add_(1, local.clamp(min=0), scale * (local >= 0))


def _cap_copy(logits: Tensor, bias: Tensor | None, shard: VocabShard, dtype: torch.dtype) -> Tensor:
    """[tokens, V] transformed logits of tokens of one pair, in new memory."""
    return shard.cap_(logits.to(dtype, copy=True) if bias is None else logits + bias)


def _cap_in_place(logits: Tensor, bias: Tensor | None, shard: VocabShard) -> Tensor:
    """The same in the memory of `logits`."""
    return shard.cap_(logits if bias is None else logits.add_(bias))


def _blocks(problem: Problem, logits: Tensor, chunk: slice) -> Iterator[_Block]:
    """The tokens of a chunk, on a CPU few at a time."""
    on_cpu = logits.device.type == "cpu"
    size = max(1, CPU_BLOCK // logits.size(1)) if on_cpu else logits.size(0)
    for segment, pair in problem.segments.within(chunk):
        for start in range(segment.start, segment.stop, size):
            yield _Block(slice(start, min(start + size, segment.stop)), pair)
