"""`gumbel_mix` on Triton as two operators of PyTorch, which `torch.compile` keeps in its graph.

Importing this module needs Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lpc_kernels.gumbel_mix import triton_backend
from lpc_kernels.gumbel_mix.result import GumbelMix, MixOptions
from lpc_kernels.gumbel_mix.triton_backend import Outputs, Saved, Upstream, empty_outputs


def gumbel_mix_triton(
    logits_q: Tensor, logits_p: Tensor, codebook: Tensor, sample_ids: Tensor, options: MixOptions
) -> GumbelMix:
    """`gumbel_mix` for arguments that are checked."""
    # The signed number of the same 64 bits, as operators take integers.
    seed = options.seed - (1 << 64) if options.seed >= 1 << 63 else options.seed
    scalars = (seed, options.tau, options.prior_mix, options.straight_through)
    outputs = gumbel_mix_op(logits_q, logits_p, codebook, sample_ids, *scalars)
    return GumbelMix(*outputs[:8])


@torch.library.custom_op("lpc_kernels::gumbel_mix", mutates_args=())
def gumbel_mix_op(
    logits_q: Tensor,
    logits_p: Tensor,
    codebook: Tensor,
    sample_ids: Tensor,
    seed: int,
    tau: float,
    prior_mix: float,
    straight_through: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `GumbelMix` in their order, then the soft weights of both sides.

    The soft weights are empty without `straight_through`.
    """
    options = MixOptions(seed=seed, tau=tau, prior_mix=prior_mix, straight_through=straight_through)
    return triton_backend.forward(logits_q, logits_p, codebook, sample_ids, options)


@gumbel_mix_op.register_fake
def _(logits_q, logits_p, codebook, sample_ids, seed, tau, prior_mix, straight_through):  # type: ignore[no-untyped-def]
    return empty_outputs(logits_q, logits_p, codebook, straight_through)


@torch.library.custom_op("lpc_kernels::gumbel_mix_backward", mutates_args=())
def gumbel_mix_backward_op(
    saved: list[Tensor], upstream: list[Tensor | None], tau: float, prior_mix: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both logits and of the codebook. saved: the fields of `Saved`. upstream: those of `Upstream`."""
    return triton_backend.backward(Saved(*saved), Upstream(*upstream), tau, prior_mix)


@gumbel_mix_backward_op.register_fake
def _(saved, upstream, tau, prior_mix):  # type: ignore[no-untyped-def]
    return triton_backend.empty_gradients(Saved(*saved))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    logits_q, logits_p, codebook, _, _, ctx.tau, ctx.prior_mix, straight_through = inputs
    weights = output[6:8]
    soft_weights = output[8:] if straight_through else weights
    ctx.save_for_backward(logits_q, logits_p, codebook, *weights, *soft_weights)
    # An output that the loss does not read costs nothing, and a filled zero would.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = gumbel_mix_backward_op(list(ctx.saved_tensors), list(grads[:8]), ctx.tau, ctx.prior_mix)
    return *gradients, None, None, None, None, None


gumbel_mix_op.register_autograd(_backward, setup_context=_setup_context)
