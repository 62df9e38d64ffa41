"""The per-token work between the large products, behind one protocol with two implementations: PyTorch and Triton.

Logits go from the product h W^T to the softmax statistics, and then, in place, to their own gradient. All of it in
fp32, or in fp64 for fp64 logits. C: loss tokens of a chunk, V: entries of this rank's vocabulary shard, L latents of P
pairs.
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
    """Of a chunk: the gradient of the targets' log-probs, and what is needed to pass it on to the logits."""

    scale: Tensor
    """[L, C] gradient of the log-probs."""
    stats: Tensor
    """[>= 2, L, C] softmax statistics over the whole vocabulary."""
    bias: Tensor | None
    """[L, P, V] what the latents add to the logits."""
    d_bias: Tensor | None
    """[L, P, V] gradient by `bias`, added to; None: not asked for."""
    local_max: Tensor | None = None
    """[1, C] running max of this shard where `stats` was told to leave exponentials in place of the logits."""


class Backend(Protocol):
    """How the per-token work is done."""

    def works_in_place(self, dtype: torch.dtype) -> bool:
        """Whether elementwise passes work on logits of this dtype where they lie, without rounding.

        Then each pass saved is time saved: a latent is better added to the hidden states than to the logits, and
        exponentials better kept for the gradient.
        """
        ...

    def stats(self, problem: Problem, logits: Tensor, chunk: slice, keep_exponentials: bool = False) -> Tensor:
        """[S, L, C] statistics over this shard (see `softmax_stats.py`) of the softmaxes of logits [C, V], h W^T.

        keep_exponentials: logits become exp(logit - max) for `logits_gradient_`; only for one latent, without soft cap
            and entropy, where
        `works_in_place`.
        """
        ...

    def logits_gradient_(self, problem: Problem, logits: Tensor, chunk: slice, gradient: LogpsGradient) -> None:
        """Overwrite logits [C, V] with the gradient by h W^T of the sum of scale * log-prob over latents and tokens,
        rounded once.
        """
        ...

    def scoring_stats(self, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
        """From a chunk to its `stats`, where no gradient will be asked for."""
        ...


def choose_backend(problem: Problem) -> Backend:
    """Triton for CUDA tensors, and for all with TRITON_INTERPRET=1; else PyTorch."""
    if runs_on_triton(problem.hidden):
        from lpc_kernels.pair_logps.triton_backend import TritonBackend

        return TritonBackend()
    from lpc_kernels.pair_logps.pytorch_backend import PyTorchBackend

    return PyTorchBackend()


def stats_of_logits(backend: Backend, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
    """From a chunk to its `stats`, by way of logits in memory."""
    logits = ChunkLogits(problem, chunks)
    return lambda chunk: backend.stats(problem, logits(chunk), chunk)
