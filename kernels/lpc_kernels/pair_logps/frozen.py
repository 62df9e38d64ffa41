"""The algorithm `frozen`, for an LM head without gradient: the forward pass makes the Jacobian of every log-prob.

It costs (2 + 2 L) N V H instead of 6 N V H, and keeps L N H numbers from forward to backward. The loss may be any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpc_kernels.pair_logps.backend import LogpsGradient, choose_backend
from lpc_kernels.pair_logps.chunk_logits import ChunkLogits, chunks_in_flight, empty_logits, overlapped
from lpc_kernels.pair_logps.gradients import as_gradient
from lpc_kernels.pair_logps.operator_arguments import empty_outputs, flat, problem_of
from lpc_kernels.pair_logps.problem import Problem, Scores
from lpc_kernels.pair_logps.segments import Segments, token_chunks
from lpc_kernels.pair_logps.softmax_stats import gather_stats, log_prob


def frozen(problem: Problem) -> Scores:
    """Log-probs that are differentiable in hidden and z. Collectives: as `_stats_and_jacobian`."""
    token_logps, stats, _ = frozen_op(*flat(problem))
    return Scores(token_logps, stats)


class _Started(NamedTuple):
    """A chunk whose statistics are being gathered."""

    chunk: slice
    logits: Tensor
    stats: Callable[[], Tensor]


def _stats_and_jacobian(problem: Problem) -> tuple[Tensor, Tensor]:
    """[3 or 4, L, N] statistics over the whole vocabulary, and [L, N, H] d log-prob / d hidden of each token.

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
            logits = started.logits if is_last else _copy_of_logits(started.logits)
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


def _copy_of_logits(logits: Tensor) -> Tensor:
    """[C, V] with rows as far apart as a GPU wants them."""
    num_tokens, vocab_local = logits.shape
    return empty_logits(num_tokens, vocab_local, like=logits).copy_(logits)


def _gradient_of_latent(problem: Problem, stats: Tensor, latent: int) -> LogpsGradient:
    """The gradient of the log-probs themselves, under one latent."""
    only = slice(latent, latent + 1)
    return LogpsGradient(
        scale=stats.new_ones((1, stats.size(-1))),
        stats=stats[:2, only],
        d_bias=None,
        latent=latent,
    )


def _sums_over_pairs(scaled: Tensor, segments: Segments, num_pairs: int) -> Tensor:
    """[L, P, H] sums over the tokens of each of P pairs. scaled: [L, N, H] gradients of h + z."""
    pair = segments.repeat(segments.pair_of_segment)
    # A product with the one-hot pairs adds up tokens in a fixed order on every device; index_add_ does not.
    one_hot = (torch.arange(num_pairs, device=pair.device)[:, None] == pair).to(scaled.dtype)
    return one_hot @ scaled


@torch.library.custom_op("lpc_kernels::frozen", mutates_args=())
def frozen_op(
    hidden: Tensor,
    lm_head_weight: Tensor,
    z: Tensor | None,
    index: list[Tensor],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`frozen`, with the Jacobian [L, N, H] as third output. Collectives: an all-gather and L all-reduces per chunk."""
    stats, jacobian = _stats_and_jacobian(problem_of(hidden, lm_head_weight, z, index, sizes, scaling, group_name))
    return log_prob(stats), stats, jacobian


@frozen_op.register_fake
def _(hidden, lm_head_weight, z, index, sizes, scaling, group_name):  # type: ignore[no-untyped-def]
    logps, stats = empty_outputs(hidden, z, sizes)
    return logps, stats, hidden.new_empty((logps.size(0), *hidden.shape))


def _save_for_frozen(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, z, index, *_ = inputs
    _, cu_seqlens, pair_of_segment = index
    _, stats, jacobian = output
    ctx.mark_non_differentiable(stats, jacobian)
    ctx.save_for_backward(z, cu_seqlens, pair_of_segment, jacobian)


def _frozen_backward(ctx: Any, d_logps: Tensor, _d_stats: Tensor, _d_jacobian: Tensor) -> tuple[Any, ...]:
    d_hidden, d_z = _frozen_gradients(ctx, d_logps)
    no_index = [None, None, None]
    return d_hidden, None, d_z, no_index, None, None, None


@once_differentiable
def _frozen_gradients(ctx: Any, d_logps: Tensor) -> tuple[Tensor | None, Tensor | None]:
    z, cu_seqlens, pair_of_segment, jacobian = ctx.saved_tensors
    for_hidden, _, for_z = ctx.needs_input_grad[:3]
    scaled = jacobian * d_logps[..., None]
    d_hidden = d_z = None
    if for_hidden:
        d_hidden = scaled.sum(0).to(jacobian.dtype)
    if for_z:
        segments = Segments(cu_seqlens, pair_of_segment, scaled.size(1))
        d_z = as_gradient(z, _sums_over_pairs(scaled, segments, z.size(1)))
    return d_hidden, d_z


frozen_op.register_autograd(_frozen_backward, setup_context=_save_for_frozen)
