"""The per-token work of many latents with one exponential per logit, on a CPU.

exp(h W^T + z W^T) is exp(h W^T) exp(z W^T): with E [C, V] = exp(h W^T - its max) and F [L, V] = exp(z W^T - its max)
the softmax sums of all latents are the product E F^T. With G [L, C], the gradients of the log-probs over those sums,
the gradient of h W^T is E * (G^T F) and that of z W^T is F * (G E), both without the targets' part. L latents then
cost products of 2 C V L operations instead of L exponentials and several passes per logit.

So it serves many latents, latents that all pairs share, and the gradient of z alone, which needs no gradient of the
logits and so no pass that writes one. It needs logits that are not capped: the sum under the cap does not come apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lpc_kernels.huge_pages import in_huge_pages
from lpc_kernels.pair_logps.backend import LogpsGradient, stats_of_logits
from lpc_kernels.pair_logps.chunk_logits import CPU_PIECE
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.pytorch_backend import CPU_BLOCK
from lpc_kernels.pair_logps.segments import token_chunks
from lpc_kernels.triton_support import runs_on_triton

MANY_LATENTS = 8
"""From this many on the products are used for every call, below only where they save more."""
WIDEST_BIAS = {torch.float32: 50.0, torch.float64: 600.0}
"""What z W^T may differ by within the vocabulary, for sums that stay far above the smallest number of a dtype: e^-50 of
the largest term is the least that they can be, or e^-600."""


@dataclass(frozen=True)
class Factors:
    """F, and what it was scaled by. `bias` is z W^T / temperature, in fp32 (fp64)."""

    values: Tensor
    """[L, P, V] exp(bias - highest); fp64 where it is wide."""
    highest: Tensor
    """[L, P] max of the bias."""
    of_targets: Tensor
    """[L, N] bias of each token's target; of any token id where the shard has no such target."""
    is_wide: bool
    """Whether the bias differs by more than `WIDEST_BIAS` of fp32 within the vocabulary."""


def may_be_factored(problem: Problem, z_only: bool) -> bool:
    """Whether the sums come apart, and it is worth it. z_only: a gradient of z is wanted and no other."""
    z, dtype = problem.z, problem.hidden.dtype
    if z is None or runs_on_triton(problem.hidden) or dtype not in (torch.float32, torch.float64):
        return False
    if problem.shard.softcap is not None or problem.with_entropy or problem.shard.vocab_local == 0:
        return False
    several_pairs = problem.segments.pair_of_segment.numel() > 2
    return z_only or z.size(0) >= MANY_LATENTS or (z.size(0) > 1 and problem.shares_latents and several_pairs)


def latent_factors(problem: Problem) -> Factors | None:
    """The factors of a problem with z; None where a latent moves the logits too far apart for them."""
    z, weight = problem.z, problem.vocab_weight
    assert z is not None
    # One product for all latents, where `latent_biases` has one for each, and so reads the LM head L times.
    bias = in_huge_pages(torch.empty, (*z.shape[:2], weight.size(0)), weight.dtype, weight.device)
    for piece in token_chunks(weight.size(0), CPU_PIECE):
        bias[..., piece] = (z.flatten(0, 1).to(weight.dtype) @ weight[piece].t()).view(*z.shape[:2], -1)
    problem.shard.cap_(bias)
    highest = bias.amax(-1)
    widest = float((highest - bias.amin(-1)).max())
    if widest > WIDEST_BIAS[torch.float64]:
        return None
    segments = problem.segments
    pair = segments.repeat(segments.pair_of_segment)
    of_targets = bias[:, pair, problem.shard.locate(problem.targets).clamp(min=0)]
    is_wide = widest > WIDEST_BIAS[torch.float32]
    if is_wide:
        bias = bias.double()
    return Factors(bias.sub_(highest[..., None]).exp_(), highest, of_targets, is_wide)


@dataclass(frozen=True)
class FactoredBackend:
    """`Backend` for the problem that the factors are of. Statistics leave E in the memory of the logits."""

    factors: Factors

    def works_in_place(self, dtype: torch.dtype) -> bool:
        return True

    def keeps_exponentials(self, problem: Problem) -> bool:
        return True

    def stats(self, problem: Problem, logits: Tensor, chunk: slice, keep_exponentials: bool = False) -> Tensor:
        stats = logits.new_zeros((3, problem.num_latents, logits.size(0)))
        stats[2] = self.of_targets(problem, logits, chunk)
        stats[0] = self._exponentials_(problem, logits, chunk)
        for run, pair in runs_of_latents(problem, chunk):
            for piece in token_chunks(logits.size(1), CPU_PIECE):
                stats[1, :, run].addmm_(self.factors.values[:, pair, piece], logits[run, piece].t())
        return stats

    def logits_gradient_(self, problem: Problem, logits: Tensor, chunk: slice, gradient: LogpsGradient) -> None:
        own_max = gradient.local_max
        if own_max is None:
            own_max = self._exponentials_(problem, logits, chunk)
        scale = gradient.scale / problem.shard.temperature
        running_max, running_sum = gradient.stats[:2]
        slope = scale / running_sum * (own_max - running_max).exp()
        local = problem.shard.locate(problem.targets[chunk])
        pieces = token_chunks(logits.size(1), CPU_PIECE)
        for run, pair in runs_of_latents(problem, chunk):
            for piece in pieces:
                factor = self.factors.values[:, pair, piece]
                exponentials = logits[run, piece]
                if gradient.d_bias is not None:
                    gradient.d_bias[:, pair, piece].addcmul_(slope[:, run] @ exponentials, factor, value=-1)
                if not gradient.only_bias:
                    exponentials.mul_(slope[:, run].t() @ factor).neg_()
            add_targets_(gradient, logits[run], pair, local[run], scale[:, run])

    def of_targets(self, problem: Problem, logits: Tensor, chunk: slice) -> Tensor:
        """[L, C] logit of each target under each latent; -inf where another shard has it."""
        local = problem.shard.locate(problem.targets[chunk])
        found = logits.gather(1, local.clamp(min=0)[:, None])[:, 0] / problem.shard.temperature
        return (found + self.factors.of_targets[:, chunk]).where(local >= 0, -torch.inf)

    def scoring_stats(self, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
        return stats_of_logits(self, problem, chunks)

    def _exponentials_(self, problem: Problem, logits: Tensor, chunk: slice) -> Tensor:
        """Make E of the logits, in place; [L, C] what its logarithm was lowered by, together with that of F."""
        largest = logits.new_empty(logits.size(0))
        for rows in token_chunks(logits.size(0), max(1, CPU_BLOCK // logits.size(1))):
            block = problem.shard.cap_(logits[rows])
            largest[rows] = running_max = block.amax(-1)
            block.sub_(running_max[:, None]).exp_()
        lowered = largest.expand(problem.num_latents, -1).clone()
        for run, pair in runs_of_latents(problem, chunk):
            lowered[:, run] += self.factors.highest[:, pair, None]
        return lowered


def add_targets_(gradient: LogpsGradient, logits: Tensor, pair: int, local: Tensor, scale: Tensor) -> None:
    """The targets' part of a gradient: the probability of the target was subtracted from its 1, still in fp32.

    Args:
        logits: [C, V] of the tokens of a pair, by now their gradient.
        local: [C] place of each target in the shard; negative where it is in another one.
        scale: [L, C] gradient of the log-probs / temperature.
    """
    place, of_targets = local.clamp(min=0), scale * (local >= 0)
    if gradient.d_bias is not None:
        gradient.d_bias[:, pair].scatter_add_(1, place.expand_as(of_targets), of_targets)
    if not gradient.only_bias:
        logits.scatter_add_(1, place[:, None], of_targets.sum(0)[:, None])


def runs_of_latents(problem: Problem, chunk: slice) -> list[tuple[slice, int]]:
    """Neighbouring tokens of a chunk with the same latents, and which of [P] these are."""
    if problem.shares_latents:
        return [(slice(0, chunk.stop - chunk.start), 0)]
    runs: list[tuple[slice, int]] = []
    for tokens, pair in problem.segments.within(chunk):
        if runs and runs[-1][1] == pair and runs[-1][0].stop == tokens.start:
            runs[-1] = (slice(runs[-1][0].start, tokens.stop), pair)
        else:
            runs.append((tokens, pair))
    return runs
