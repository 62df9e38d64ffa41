"""`FactoredBackend` with products in fp64: for latents that move the logits by more than fp32 sums can span.

Trained codes may: after some 40 steps of SmolLM2's head z W^T can differ by more than 50 within the vocabulary. E is
made of the logits piece by piece, in the forward pass and again in the backward pass: no [C, V] of fp64 is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lpc_kernels.pair_logps.backend import LogpsGradient
from lpc_kernels.pair_logps.chunk_logits import CPU_PIECE
from lpc_kernels.pair_logps.factored import FactoredBackend, add_targets_, runs_of_latents
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import token_chunks


@dataclass(frozen=True)
class WideFactoredBackend(FactoredBackend):
    """`Backend` for the problem that the factors, in fp64, are of. Statistics leave the logits as they are."""

    def keeps_exponentials(self, problem: Problem) -> bool:
        return False

    def stats(self, problem: Problem, logits: Tensor, chunk: slice, keep_exponentials: bool = False) -> Tensor:
        stats = logits.new_zeros((3, problem.num_latents, logits.size(0)))
        largest = _largest(problem, logits)
        for run, pair in runs_of_latents(problem, chunk):
            sums = largest.new_zeros((problem.num_latents, run.stop - run.start))
            for piece in token_chunks(logits.size(1), CPU_PIECE):
                exponentials = _exponentials(problem, logits[run, piece], largest[run])
                sums.addmm_(self.factors.values[:, pair, piece], exponentials.t())
            # The sum may be smaller than any fp32 number, its logarithm is not; `stats[1]` makes up for its rounding.
            normalizer = largest[run] + self.factors.highest[:, pair, None] + sums.log()
            stats[0, :, run] = normalizer
            stats[1, :, run] = (normalizer - stats[0, :, run]).exp()
        stats[2] = self.of_targets(problem, logits, chunk)
        return stats

    def logits_gradient_(self, problem: Problem, logits: Tensor, chunk: slice, gradient: LogpsGradient) -> None:
        scale = gradient.scale / problem.shard.temperature
        running_max, running_sum = gradient.stats[:2]
        local = problem.shard.locate(problem.targets[chunk])
        largest = _largest(problem, logits)
        for run, pair in runs_of_latents(problem, chunk):
            lowered = largest[run] + self.factors.highest[:, pair, None] - running_max[:, run]
            slope = lowered.exp() * scale[:, run] / running_sum[:, run]
            for piece in token_chunks(logits.size(1), CPU_PIECE):
                factor = self.factors.values[:, pair, piece]
                exponentials = _exponentials(problem, logits[run, piece], largest[run])
                if gradient.d_bias is not None:
                    gradient.d_bias[:, pair, piece] -= (slope @ exponentials).mul_(factor)
                if not gradient.only_bias:
                    logits[run, piece] = exponentials.mul_(slope.t() @ factor).neg_()
            add_targets_(gradient, logits[run], pair, local[run], scale[:, run])


def _largest(problem: Problem, logits: Tensor) -> Tensor:
    """[C] fp64 largest logit of each token, over the temperature."""
    return logits.amax(-1).double() / problem.shard.temperature


def _exponentials(problem: Problem, logits: Tensor, largest: Tensor) -> Tensor:
    """[C, V] fp64 exp(logits / temperature - largest)."""
    return (logits.double() / problem.shard.temperature).sub_(largest[:, None]).exp_()
