"""The algorithm `pairwise`: the pair loss comes with the call, so the forward pass makes the gradients too, 6 N V H.

A chunk holds both responses of some pairs. Once its log-probs are known, so are the losses and their derivatives. The
logits are still in memory: they become their own gradient in place and are multiplied at once, so no logits are made
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpc_kernels.pair_logps.backend import LogpsGradient, choose_backend, fastest_backend
from lpc_kernels.pair_logps.chunk_logits import ChunkLogits, chunks_in_flight, overlapped
from lpc_kernels.pair_logps.gradients import (
    Gradients,
    InputGradients,
    Wanted,
    as_gradient,
    gradient_beside_main_grad,
)
from lpc_kernels.pair_logps.problem import PairLoss, Problem, Scores
from lpc_kernels.pair_logps.segments import PairChunk, pair_chunks, segments_in_pair_order
from lpc_kernels.pair_logps.softmax_stats import gather_stats, log_prob


def pairwise(problem: Problem) -> Scores:
    """Log-probs without gradient, and the pair loss, whose gradients are already made when this returns."""
    problem = _with_latent_in_hidden(problem)
    outputs = _Pairwise.apply(problem.hidden, problem.lm_head_weight, problem.z, problem)
    token_logps, stats, loss, pair_losses = outputs
    return Scores(token_logps, stats, loss, pair_losses)


def evaluate_pair_loss(pair_loss: PairLoss, logps: Tensor, pairs: Tensor) -> Tensor:
    """[B] losses of B pairs. logps: [L, 2, B]. pairs: [B]. Raises ValueError unless there is one loss per pair."""
    losses = pair_loss(logps, pairs)
    if losses.shape != pairs.shape:
        raise ValueError(
            f"pair_logps: pair_loss must give a loss for each of {pairs.numel()} pairs, got {list(losses.shape)}"
        )
    return losses


def _with_latent_in_hidden(problem: Problem) -> Problem:
    """The same problem with z added to the hidden states [N, H] instead of z W^T to the logits [N, V].

    Only where this saves a pass over the logits: for a single latent, in a dtype whose sum is not rounded further, and
    unless it would ask for a gradient of hidden that the caller does not want.
    """
    hidden, z = problem.hidden, problem.z
    if z is None or z.size(0) > 1 or not choose_backend(problem).works_in_place(hidden.dtype):
        return problem
    if z.requires_grad and not hidden.requires_grad:
        return problem
    pair = problem.segments.repeat(problem.segments.pair_of_segment)
    return replace(problem, hidden=hidden + z[0].to(hidden.dtype).index_select(0, pair), z=None)


class _Started(NamedTuple):
    """A chunk whose statistics are being gathered."""

    chunk: PairChunk
    logits: Tensor
    stats: Callable[[], Tensor]
    local_max: Tensor | None


@dataclass(frozen=True)
class _Results:
    """What `_compute` returns, with the loss tokens in pair order."""

    stats: Tensor
    loss: Tensor
    pair_losses: Tensor
    gradients: InputGradients


class _Pairwise(torch.autograd.Function):
    """Log-probs [L, N], statistics [3 or 4, L, N], summed loss and pair losses [P]; only the loss has a gradient.

    `problem` holds the tensor arguments too: autograd finds the tensors it differentiates only among the arguments.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, lm_head_weight: Tensor, z: Tensor | None, problem: Problem
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        segments, order = segments_in_pair_order(problem.segments)
        in_pair_order = replace(problem, hidden=hidden[order], targets=problem.targets[order], segments=segments)
        chunks = pair_chunks(problem.segments.pair_lengths, problem.chunk_size)
        results = _compute(in_pair_order, chunks, Wanted(*ctx.needs_input_grad[:3]))
        gradients = results.gradients
        if gradients.hidden is not None:
            # The hidden states in pair order are no longer needed: reuse their memory for the gradient.
            d_hidden = in_pair_order.hidden.index_copy_(0, order, gradients.hidden)
            gradients = gradients._replace(hidden=d_hidden)
        stats = torch.empty_like(results.stats).index_copy_(-1, order, results.stats)
        token_logps = log_prob(stats)
        ctx.gradients = gradients
        ctx.in_main_grad = problem.main_grad is not None
        ctx.main_grad_only = problem.main_grad_only
        ctx.save_for_backward(lm_head_weight, z)
        ctx.mark_non_differentiable(token_logps, stats, results.pair_losses)
        return token_logps, stats, results.loss, results.pair_losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _d_logps: Tensor, _d_stats: Tensor, d_loss: Tensor, _d_losses: Tensor
    ) -> tuple[Tensor | None, ...]:
        lm_head_weight, z = ctx.saved_tensors
        if ctx.gradients is None:
            raise RuntimeError(
                "pair_logps: the gradients of algorithm pairwise were made in the forward pass "
                "and are gone after one backward"
            )
        d_hidden, d_weight, d_z = ctx.gradients
        ctx.gradients = None
        if d_hidden is not None:
            d_hidden.mul_(d_loss.to(d_hidden.dtype))
        if d_weight is not None and ctx.in_main_grad:
            _check_factor_one(d_weight, d_loss)
            d_weight = gradient_beside_main_grad(lm_head_weight, ctx.main_grad_only)
        elif d_weight is not None:
            d_weight = as_gradient(lm_head_weight, d_weight.mul_(d_loss))
        if d_z is not None:
            d_z = as_gradient(z, d_z.mul_(d_loss))
        return d_hidden, d_weight, d_z, None


def _check_factor_one(main_grad: Tensor, d_loss: Tensor) -> None:
    """Refuse a factor: the gradient is already in a buffer that others add to, and cannot be scaled there.

    A factor that is not finite is passed on instead, so that a check for overflow sees it.
    """
    torch._assert_async(
        (d_loss == 1) | ~d_loss.isfinite(),
        "pair_logps: with algorithm pairwise and main_grad the loss must enter the final loss with factor 1",
    )
    main_grad[:1] += d_loss - 1


def _compute(problem: Problem, chunks: list[PairChunk], wanted: Wanted) -> _Results:
    """Losses and gradients of a problem in pair order, chunk by chunk.

    Collectives on the tensor parallel group: one all-gather of the statistics per chunk, and those of `Gradients`.
    """
    backend = fastest_backend(problem, wanted.only_z)
    gradients = Gradients(problem, wanted)
    in_flight = chunks_in_flight(problem)
    chunk_logits = ChunkLogits(problem, [chunk.tokens for chunk in chunks], in_flight)
    keep_exponentials = backend.keeps_exponentials(problem)
    stats = problem.hidden.new_empty(problem.stats_shape, dtype=problem.stats_dtype)
    loss = problem.hidden.new_zeros((), dtype=problem.stats_dtype)
    losses_of_chunks = []

    def start(chunk: PairChunk) -> _Started:
        logits = chunk_logits(chunk.tokens)
        own = backend.stats(problem, logits, chunk.tokens, keep_exponentials)
        arriving = gather_stats(own, problem.shard.group)
        return _Started(chunk, logits, arriving, own[0] if keep_exponentials else None)

    for started in overlapped(chunks, start, in_flight):
        tokens = started.chunk.tokens
        stats[..., tokens] = merged = started.stats()
        losses, scale = _losses_and_derivatives(problem, started.chunk, log_prob(merged))
        gradient = LogpsGradient(
            scale=scale,
            stats=merged,
            d_bias=gradients.bias,
            local_max=started.local_max,
            only_bias=wanted.only_z,
        )
        backend.logits_gradient_(problem, started.logits, tokens, gradient)
        gradients.add(tokens, started.logits)
        loss += losses.sum()
        losses_of_chunks.append(losses)
    return _Results(stats, loss, torch.cat(losses_of_chunks), gradients.finish())


def _losses_and_derivatives(problem: Problem, chunk: PairChunk, token_logps: Tensor) -> tuple[Tensor, Tensor]:
    """[B] losses of the B pairs of a chunk, and the derivative [L, C] of their sum by its token log-probs."""
    assert problem.pair_loss is not None
    segments = chunk.segments(problem.segments)
    with torch.enable_grad():
        sums = segments.sums(token_logps).unflatten(1, (-1, 2)).transpose(1, 2)
        logps = sums.detach().requires_grad_()
        pairs = torch.arange(chunk.pairs.start, chunk.pairs.stop, device=logps.device)
        losses = evaluate_pair_loss(problem.pair_loss, logps, pairs)
        (d_logps,) = torch.autograd.grad(losses.sum(), logps)
    of_segments = d_logps.transpose(1, 2).flatten(1)
    return losses.detach(), segments.repeat(of_segments)
