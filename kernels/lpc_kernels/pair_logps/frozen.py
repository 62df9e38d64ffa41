"""The algorithm `frozen`, for an LM head that has no gradient: the Jacobian of every log-prob is made in the forward
pass.

It costs (2 + 2 L) N V H in place of 6 N V H, and L N H numbers from forward to backward; the loss may be any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.pair_logps.backend import LogpsGradient, choose_backend
from lpc_kernels.pair_logps.chunk_logits import ChunkLogits, chunks_in_flight, overlapped
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import Segments, token_chunks
from lpc_kernels.pair_logps.softmax_stats import gather_stats


class _Started(NamedTuple):
    """A chunk whose statistics are on their way."""

    chunk: slice
    logits: Tensor
    stats: Callable[[], Tensor]


def stats_and_jacobian(problem: Problem) -> tuple[Tensor, Tensor]:
    """[S, L, N] statistics over the whole vocabulary, and [L, N, H] d log-prob / d hidden of each token.

    Collectives on the tensor parallel group: one all-gather of the statistics and L all-reduces of the Jacobian per
    chunk.
    """
    backend = choose_backend(problem)
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    in_flight = chunks_in_flight(problem)
    chunk_logits = ChunkLogits(problem, chunks, in_flight)
    stats = problem.hidden.new_empty(problem.stats_shape, dtype=problem.stats_dtype)
    jacobian = problem.hidden.new_zeros((problem.num_latents, *problem.hidden.shape))
    reductions: list[dist.Work] = []

    def start(chunk: slice) -> _Started:
        logits = chunk_logits(chunk)
        own = backend.stats(problem, logits, chunk)
        return _Started(chunk, logits, gather_stats(own, problem.shard.group))

    for started in overlapped(chunks, start, in_flight):
        stats[..., started.chunk] = merged = started.stats()
        for latent in range(problem.num_latents):
            is_last = latent == problem.num_latents - 1
            logits = started.logits if is_last else started.logits.clone()
            gradient = _gradient_of_latent(problem, merged, latent)
            backend.logits_gradient_(problem, logits, started.chunk, gradient)
            part = jacobian[latent, started.chunk]
            if problem.shard.vocab_local:
                torch.mm(logits, problem.vocab_weight, out=part)
            if problem.shard.group is not None:
                reductions.append(dist.all_reduce(part, group=problem.shard.group, async_op=True))
    for reduction in reductions:
        reduction.wait()
    return stats, jacobian


def _gradient_of_latent(problem: Problem, stats: Tensor, latent: int) -> LogpsGradient:
    """The gradient of the log-probs themselves, under one latent."""
    only = slice(latent, latent + 1)
    return LogpsGradient(
        scale=stats.new_ones((1, stats.size(-1))),
        stats=stats[:2, only],
        bias=None if problem.bias is None else problem.bias[only],
        d_bias=None,
    )


def gradient_of_latents(scaled: Tensor, segments: Segments, num_pairs: int) -> Tensor:
    """[L, P, H] sums over the tokens of each of P pairs. scaled: [L, N, H] gradients of h + z."""
    pair = segments.repeat(segments.pair_of_segment)
    # A product with the one-hot pairs adds up tokens in a fixed order on every device; index_add_ does not.
    one_hot = (torch.arange(num_pairs, device=pair.device)[:, None] == pair).to(scaled.dtype)
    return one_hot @ scaled
