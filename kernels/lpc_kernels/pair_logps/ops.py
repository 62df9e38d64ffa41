"""The algorithms whose loss is not known beforehand as operators of PyTorch, which `torch.compile` keeps in its graph.

Their schema is flat: `index` is (targets, cu_seqlens, pair_of_segment); `sizes` is (vocab_start, vocab_local,
chunk_size, with_entropy); `scaling` is (logit_softcap, or 0 for none; temperature). Shapes are those of `Problem`.
Each operator returns first the log-probs [L, N], which alone are differentiable, and then the statistics [S, L, N].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpc_kernels.pair_logps.frozen import gradient_of_latents, stats_and_jacobian
from lpc_kernels.pair_logps.gradients import Wanted, as_gradient, zero_gradient
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.recompute import gradients_by_recompute
from lpc_kernels.pair_logps.scoring import stats_for_recompute, stats_for_scores
from lpc_kernels.pair_logps.segments import Segments
from lpc_kernels.pair_logps.softmax_stats import log_prob
from lpc_kernels.pair_logps.vocab_shard import VocabShard


def flat_index(problem: Problem) -> list[Tensor]:
    """`index` of an operator."""
    return [problem.targets, problem.segments.cu_seqlens, problem.segments.pair_of_segment]


def flat_sizes(problem: Problem) -> list[int]:
    """`sizes` of an operator."""
    return [problem.shard.vocab_start, problem.shard.vocab_local, problem.chunk_size, int(problem.with_entropy)]


def flat_scaling(problem: Problem) -> list[float]:
    """`scaling` of an operator."""
    softcap = problem.shard.softcap
    return [0.0 if softcap is None else float(softcap), float(problem.shard.temperature)]


def _problem(
    tensors: tuple[Tensor, Tensor, Tensor | None],
    index: list[Tensor],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
    main_grad: Tensor | None = None,
) -> Problem:
    """The problem of an operator's arguments; tensors: hidden, lm_head_weight, z."""
    hidden, lm_head_weight, z = tensors
    targets, cu_seqlens, pair_of_segment = index
    vocab_start, vocab_local, chunk_size, with_entropy = sizes
    softcap, temperature = scaling
    return Problem(
        hidden=hidden,
        lm_head_weight=lm_head_weight,
        z=z,
        targets=targets,
        segments=Segments(cu_seqlens, pair_of_segment, hidden.size(0)),
        shard=VocabShard(vocab_start, vocab_local, group_name, softcap or None, temperature),
        chunk_size=chunk_size,
        with_entropy=bool(with_entropy),
        main_grad=main_grad,
    )


def _empty_outputs(hidden: Tensor, z: Tensor | None, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probs and statistics without values."""
    num_latents = 1 if z is None else z.size(0)
    num_tokens = hidden.size(0)
    num_stats = 4 if sizes[3] else 3
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logps = hidden.new_empty((num_latents, num_tokens), dtype=dtype)
    return logps, hidden.new_empty((num_stats, num_latents, num_tokens), dtype=dtype)


@torch.library.custom_op("lpc_kernels::score", mutates_args=())
def score_op(
    hidden: Tensor,
    lm_head_weight: Tensor,
    z: Tensor | None,
    index: list[Tensor],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
) -> tuple[Tensor, Tensor]:
    """Scoring, without gradient. Collective: an all-gather per chunk."""
    stats = stats_for_scores(_problem((hidden, lm_head_weight, z), index, sizes, scaling, group_name))
    return log_prob(stats), stats


@score_op.register_fake
def _(hidden, lm_head_weight, z, index, sizes, scaling, group_name):  # type: ignore[no-untyped-def]
    return _empty_outputs(hidden, z, sizes)


@torch.library.custom_op("lpc_kernels::recompute", mutates_args=())
def recompute_op(
    hidden: Tensor,
    lm_head_weight: Tensor,
    z: Tensor | None,
    index: list[Tensor],
    main_grad: Tensor | None,
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
) -> tuple[Tensor, Tensor]:
    """`recompute`; the backward pass makes the logits again. Collective: an all-gather per chunk."""
    stats = stats_for_recompute(_problem((hidden, lm_head_weight, z), index, sizes, scaling, group_name))
    return log_prob(stats), stats


@recompute_op.register_fake
def _(hidden, lm_head_weight, z, index, main_grad, sizes, scaling, group_name):  # type: ignore[no-untyped-def]
    return _empty_outputs(hidden, z, sizes)


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
    Collectives: of `Gradients`.
    """
    hidden, lm_head_weight, *index, stats, d_logps = saved
    problem = _problem((hidden, lm_head_weight, z), index, sizes, scaling, group_name, main_grad)
    made = gradients_by_recompute(problem, stats, d_logps, Wanted(*wanted))
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
    hidden, lm_head_weight, z, index, ctx.main_grad, ctx.sizes, ctx.scaling, ctx.group_name = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(z, hidden, lm_head_weight, *index, stats)


def _recompute_backward(ctx: Any, d_logps: Tensor, _stats: Tensor) -> tuple[Any, ...]:
    no_index = [None, None, None]
    return *_recompute_gradients(ctx, d_logps), no_index, None, None, None, None


@once_differentiable
def _recompute_gradients(ctx: Any, d_logps: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    z, *saved = ctx.saved_tensors
    lm_head_weight = saved[1]
    wanted = list(ctx.needs_input_grad[:3])
    flat = (ctx.sizes, ctx.scaling, ctx.group_name)
    made = recompute_backward_op([*saved, d_logps], z, ctx.main_grad, wanted, *flat)
    d_hidden, d_weight, d_z = (gradient if asked else None for gradient, asked in zip(made, wanted, strict=True))
    if d_weight is not None and ctx.main_grad is not None:
        d_weight = zero_gradient(lm_head_weight)
    return d_hidden, as_gradient(lm_head_weight, d_weight), as_gradient(z, d_z)


recompute_op.register_autograd(_recompute_backward, setup_context=_save_for_recompute)


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
    """`frozen`; third the Jacobian [L, N, H]. Collectives: an all-gather and L all-reduces per chunk."""
    stats, jacobian = stats_and_jacobian(_problem((hidden, lm_head_weight, z), index, sizes, scaling, group_name))
    return log_prob(stats), stats, jacobian


@frozen_op.register_fake
def _(hidden, lm_head_weight, z, index, sizes, scaling, group_name):  # type: ignore[no-untyped-def]
    logps, stats = _empty_outputs(hidden, z, sizes)
    return logps, stats, hidden.new_empty((logps.size(0), *hidden.shape))


def _save_for_frozen(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, z, index, *_ = inputs
    _, cu_seqlens, pair_of_segment = index
    _, stats, jacobian = output
    ctx.mark_non_differentiable(stats, jacobian)
    ctx.save_for_backward(z, cu_seqlens, pair_of_segment, jacobian)


def _frozen_backward(ctx: Any, d_logps: Tensor, _stats: Tensor, _jacobian: Tensor) -> tuple[Any, ...]:
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
        d_z = as_gradient(z, gradient_of_latents(scaled, segments, z.size(1)))
    return d_hidden, d_z


frozen_op.register_autograd(_frozen_backward, setup_context=_save_for_frozen)
