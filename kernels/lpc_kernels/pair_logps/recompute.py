"""The algorithm `recompute`, for any loss of the log-probs: the backward pass makes the logits again.

It costs 8 N V H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpc_kernels.pair_logps.backend import LogpsGradient, fastest_backend, stats_of_logits
from lpc_kernels.pair_logps.chunk_logits import ChunkLogits
from lpc_kernels.pair_logps.gradients import (
    Gradients,
    InputGradients,
    Wanted,
    as_gradient,
    gradient_beside_main_grad,
)
from lpc_kernels.pair_logps.operator_arguments import empty_outputs, flat, problem_of
from lpc_kernels.pair_logps.problem import Problem, Scores
from lpc_kernels.pair_logps.scoring import gathered_stats
from lpc_kernels.pair_logps.segments import token_chunks
from lpc_kernels.pair_logps.softmax_stats import log_prob


def recompute(problem: Problem) -> Scores:
    """Log-probs that are differentiable in hidden, lm_head_weight and z.

    Collectives on the tensor parallel group: forward an all-gather per chunk, backward those of `Gradients`.
    """
    token_logps, stats = recompute_op(*flat(problem), problem.main_grad)
    return Scores(token_logps, stats)


def _stats(problem: Problem) -> Tensor:
    """[3 or 4, L, N] statistics over the whole vocabulary. Collective: as `gathered_stats`.

    The logits come from the same product as in the backward pass, with the same bits.
    """
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    return gathered_stats(problem, chunks, stats_of_logits(fastest_backend(problem), problem, chunks))


def _gradients(problem: Problem, stats: Tensor, d_logps: Tensor, wanted: Wanted) -> InputGradients:
    """Gradients of the inputs.

    stats: [3 or 4, L, N] of the forward pass. d_logps: [L, N] gradient of the log-probs.
    Collectives: those of `Gradients`.
    """
    backend = fastest_backend(problem)
    gradients = Gradients(problem, wanted)
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    chunk_logits = ChunkLogits(problem, chunks)
    for chunk in chunks:
        logits = chunk_logits(chunk)
        gradient = LogpsGradient(
            scale=d_logps[:, chunk],
            stats=stats[:2, :, chunk],
            d_bias=gradients.bias,
            only_bias=wanted.only_z,
        )
        backend.logits_gradient_(problem, logits, chunk, gradient)
        gradients.add(chunk, logits)
    return gradients.finish()


@torch.library.custom_op("lpc_kernels::recompute", mutates_args=())
def recompute_op(
    hidden: Tensor,
    lm_head_weight: Tensor,
    z: Tensor | None,
    index: list[Tensor],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
    main_grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`recompute`; the backward pass makes the logits again. Collective: an all-gather per chunk."""
    stats = _stats(problem_of(hidden, lm_head_weight, z, index, sizes, scaling, group_name))
    return log_prob(stats), stats


@recompute_op.register_fake
def _(hidden, lm_head_weight, z, index, sizes, scaling, group_name, main_grad):  # type: ignore[no-untyped-def]
    return empty_outputs(hidden, z, sizes)


@torch.library.custom_op("lpc_kernels::recompute_backward", mutates_args={"main_grad"})
def recompute_backward_op(
    saved: list[Tensor],
    z: Tensor | None,
    main_grad: Tensor | None,
    wanted: list[bool],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, lm_head_weight and z; an empty tensor for what is not wanted or added to `main_grad`.

    saved: hidden, lm_head_weight, the three of `index`, the statistics, and the gradient of the log-probs.
    Collectives: those of `Gradients`.
    """
    hidden, lm_head_weight, *index, stats, d_logps = saved
    problem = problem_of(hidden, lm_head_weight, z, index, sizes, scaling, group_name, main_grad)
    made = _gradients(problem, stats, d_logps, Wanted(*wanted))
    d_hidden, d_weight, d_z = (hidden.new_empty(0) if gradient is None else gradient for gradient in made)
    return d_hidden, d_weight if main_grad is None else hidden.new_empty(0), d_z


@recompute_backward_op.register_fake
def _(saved, z, main_grad, wanted, sizes, scaling, group_name):  # type: ignore[no-untyped-def]
    hidden, lm_head_weight, *_ = saved
    for_hidden, for_weight, for_z = wanted
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty(hidden.shape if for_hidden else 0),
        hidden.new_empty(lm_head_weight.shape if for_weight and main_grad is None else 0, dtype=dtype),
        hidden.new_empty(z.shape if for_z and z is not None else 0, dtype=dtype),
    )


def _save_for_recompute(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, lm_head_weight, z, index, ctx.sizes, ctx.scaling, ctx.group_name, ctx.main_grad = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(z, hidden, lm_head_weight, *index, stats)


def _recompute_backward(ctx: Any, d_logps: Tensor, _d_stats: Tensor) -> tuple[Any, ...]:
    no_index = [None, None, None]
    return *_recompute_gradients(ctx, d_logps), no_index, None, None, None, None


@once_differentiable
def _recompute_gradients(ctx: Any, d_logps: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    z, *saved = ctx.saved_tensors
    lm_head_weight = saved[1]
    wanted = list(ctx.needs_input_grad[:3])
    numbers = (ctx.sizes, ctx.scaling, ctx.group_name)
    made = recompute_backward_op([*saved, d_logps], z, ctx.main_grad, wanted, *numbers)
    d_hidden, d_weight, d_z = (gradient if asked else None for gradient, asked in zip(made, wanted, strict=True))
    if d_weight is not None and ctx.main_grad is not None:
        d_weight = gradient_beside_main_grad(lm_head_weight, main_grad_only=bool(ctx.sizes[4]))
    return d_hidden, as_gradient(lm_head_weight, d_weight), as_gradient(z, d_z)


recompute_op.register_autograd(_recompute_backward, setup_context=_save_for_recompute)
