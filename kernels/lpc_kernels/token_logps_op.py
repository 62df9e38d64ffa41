"""The log-probs of `token_logps` as two operators of PyTorch, which `torch.compile` takes as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpc_kernels.gradients import Wanted
from lpc_kernels.head import Head
from lpc_kernels.runs import Runs
from lpc_kernels.token_logps import as_gradient, gradients_again, gradients_of_latents, score, score_with_jacobian
from lpc_kernels.vocab_parallel import log_prob


@torch.library.custom_op("lpc_kernels::token_logps", mutates_args=())
def token_logps_op(
    hidden: Tensor,
    weight: Tensor,
    z: Tensor | None,
    targets: Tensor,
    edges: Tensor,
    pairs: Tensor,
    weight_grad: Tensor | None,
    vocab_start: int,
    columns: int,
    group_name: str | None,
    softcap: float | None,
    temperature: float,
    chunk_size: int,
    entropy: bool,
    schedule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """[L, N] log-probs of the targets (L = 1 without latents), alone differentiable; the [S, L, N] statistics that they come from; and the
    [L, N, H] Jacobian of `frozen`, else an empty tensor.

    edges, pairs: of the `Runs`. vocab_start to temperature: the `Head`. schedule: `recompute`, `frozen`, or `none` for no gradient.
    weight_grad: as in `pair_logps`.
    """
    runs, head = Runs(edges, pairs, hidden.size(0)), Head(vocab_start, columns, group_name, softcap, temperature)
    arguments = (hidden, weight, z, targets, runs, head, chunk_size, entropy)
    if schedule == "frozen":
        stats, jacobian = score_with_jacobian(*arguments)
    else:
        stats, jacobian = score(*arguments, fused=schedule == "none"), hidden.new_empty(0)
    return log_prob(stats), stats, jacobian


@token_logps_op.register_fake
def _(hidden, weight, z, targets, edges, pairs, weight_grad, *rest):  # type: ignore[no-untyped-def]
    *_, entropy, schedule = rest
    latents, (rows, width) = 1 if z is None else z.size(0), hidden.shape
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    stats = hidden.new_empty((3 + entropy, latents, rows), dtype=dtype)
    jacobian = hidden.new_empty((latents, rows, width) if schedule == "frozen" else 0)
    return hidden.new_empty((latents, rows), dtype=dtype), stats, jacobian


@torch.library.custom_op("lpc_kernels::token_logps_backward", mutates_args={"weight_grad"})
def token_logps_backward_op(
    hidden: Tensor,
    weight: Tensor,
    z: Tensor | None,
    targets: Tensor,
    edges: Tensor,
    pairs: Tensor,
    weight_grad: Tensor | None,
    vocab_start: int,
    columns: int,
    group_name: str | None,
    softcap: float | None,
    temperature: float,
    chunk_size: int,
    stats: Tensor,
    grad: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the schedule `recompute`: gradients of hidden, weight and z, of which `wanted` tells each; an empty tensor for what is not wanted
    or, of the weight, added to weight_grad."""
    runs, head = Runs(edges, pairs, hidden.size(0)), Head(vocab_start, columns, group_name, softcap, temperature)
    for_hidden, for_weight, for_z = wanted
    asked = Wanted(for_hidden, for_weight, for_z, weight_grad)
    made = gradients_again(hidden, weight, z, targets, runs, head, chunk_size, stats, grad, asked)
    d_hidden, d_weight, d_z = (hidden.new_empty(0) if gradient is None else gradient for gradient in made)
    return d_hidden, d_weight if weight_grad is None else hidden.new_empty(0), d_z


@token_logps_backward_op.register_fake
def _(hidden, weight, z, targets, edges, pairs, weight_grad, *rest):  # type: ignore[no-untyped-def]
    for_hidden, for_weight, for_z = rest[-1]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty(hidden.shape if for_hidden else 0),
        hidden.new_empty(weight.shape if for_weight and weight_grad is None else 0, dtype=dtype),
        hidden.new_empty(z.shape if for_z and z is not None else 0, dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, z, targets, edges, pairs, ctx.weight_grad, *ctx.head, ctx.chunk_size, _, ctx.schedule = inputs
    _, stats, jacobian = output
    ctx.mark_non_differentiable(stats, jacobian)
    kept = (jacobian,) if ctx.schedule == "frozen" else (stats, hidden, weight, targets)
    ctx.save_for_backward(z, edges, pairs, *kept)


@once_differentiable
def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    z, edges, pairs, *kept = ctx.saved_tensors
    for_hidden, _, for_z = wanted = list(ctx.needs_input_grad[:3])
    d_hidden = d_weight = d_z = None
    if ctx.schedule == "frozen":
        (jacobian,) = kept
        scaled = jacobian * grad[..., None]
        if for_hidden:
            d_hidden = scaled.sum(0).to(jacobian.dtype)
        if for_z:
            d_z = gradients_of_latents(scaled, Runs(edges, pairs, scaled.size(1)), z.size(1))
    else:
        stats, hidden, weight, targets = kept
        index = (targets, edges, pairs, ctx.weight_grad)
        made = token_logps_backward_op(hidden, weight, z, *index, *ctx.head, ctx.chunk_size, stats, grad, wanted)
        d_hidden, d_weight, d_z = (gradient if asked else None for gradient, asked in zip(made, wanted, strict=True))
        d_weight = as_gradient(weight, d_weight, ctx.weight_grad)
    return d_hidden, d_weight, as_gradient(z, d_z), *[None] * 12


token_logps_op.register_autograd(_backward, setup_context=_setup_context)
