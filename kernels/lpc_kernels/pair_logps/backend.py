"""The per-token work between the large products, behind one protocol with two implementations: PyTorch and Triton.

Logits go from the product h W^T to the softmax statistics, and then, in place, to their own gradient. All of it is
computed in fp32, or in fp64 for fp64 logits. The letters of shapes are listed in `problem.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lpc_kernels.pair_logps.chunk_logits import ChunkLogits
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.triton_support import runs_on_triton


@dataclass(frozen=True)
class LogpsGradient:
    """The gradient of a chunk's log-probs, and what is needed to pass it on to the logits."""

    scale: Tensor
    """[L, C] gradient of the log-probs."""
    stats: Tensor
    """[2 or more, L, C] softmax statistics over the whole vocabulary."""
    d_bias: Tensor | None
    """[L, P, V] gradient of what the latents add to the logits, which is added to; None: not asked for."""
    latent: int | None = None
    """The only one of the problem's latents that this is about (L is then 1); None: all."""
    local_max: Tensor | None = None
    """[L, C] running max of this shard, if `stats` was told to leave exponentials in the logits' memory; else None."""
    only_bias: bool = False
    """Only `d_bias` is asked for; the logits may hold anything afterwards."""

    def bias(self, problem: Problem) -> Tensor | None:
        """[L, P, V] what these latents add to the logits."""
        if problem.bias is None or self.latent is None:
            return problem.bias
        return problem.bias[self.latent : self.latent + 1]


class Backend(Protocol):
    """How the per-token work is done."""

    def works_in_place(self, dtype: torch.dtype) -> bool:
        """Whether elementwise passes overwrite logits of this dtype in place, without rounding.

        Each pass saved is then time saved: a latent is better added to the hidden states than to the logits, and
        exponentials are better kept for the gradient.
        """
        ...

    def keeps_exponentials(self, problem: Problem) -> bool:
        """Whether `stats` may be told to keep exponentials."""
        ...

    def stats(self, problem: Problem, logits: Tensor, chunk: slice, keep_exponentials: bool = False) -> Tensor:
        """[3 or 4, L, C] softmax statistics over this shard of the logits h W^T [C, V], see `softmax_stats.py`.

        The logits may be overwritten. keep_exponentials: they become exponentials, for `logits_gradient_`.
        """
        ...

    def logits_gradient_(self, problem: Problem, logits: Tensor, chunk: slice, gradient: LogpsGradient) -> None:
        """Overwrite logits [C, V] with the gradient by h W^T of the sum of scale * log-prob, rounded once.

        The sum is over latents and tokens.
        """
        ...

    def scoring_stats(self, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
        """A function from a chunk to its `stats`, for calls without gradient."""
        ...


def choose_backend(problem: Problem) -> Backend:
    """Triton for CUDA tensors, and for all with TRITON_INTERPRET=1; else PyTorch. Logits outlive `stats`."""
    if runs_on_triton(problem.hidden):
        from lpc_kernels.pair_logps.triton_backend import TritonBackend

        return TritonBackend()
    from lpc_kernels.pair_logps.pytorch_backend import PyTorchBackend

    return PyTorchBackend()


def fastest_backend(problem: Problem, z_only: bool = False) -> Backend:
    """`choose_backend`, or `FactoredBackend` where it serves. z_only: a gradient of z is wanted and no other."""
    from lpc_kernels.pair_logps.factored import FactoredBackend, latent_factors, may_be_factored
    from lpc_kernels.pair_logps.factored_wide import WideFactoredBackend

    if may_be_factored(problem, z_only):
        factors = latent_factors(problem)
        if factors is not None:
            return WideFactoredBackend(factors) if factors.is_wide else FactoredBackend(factors)
    return choose_backend(problem)


def stats_of_logits(backend: Backend, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
    """A function from a chunk to its `stats`, through logits in memory."""
    logits = ChunkLogits(problem, chunks)
    return lambda chunk: backend.stats(problem, logits(chunk), chunk)
