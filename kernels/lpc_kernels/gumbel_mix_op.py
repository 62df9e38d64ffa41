"""`gumbel_mix` on Triton as two operators of PyTorch, which `torch.compile` takes as they are."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpc_kernels import gumbel_mix_kernels as kernels
from lpc_kernels.shipped import Shipped

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
_TRITON_TYPES = {torch.float64: tl.float64, torch.float32: tl.float32}


def blocks(codes: int, width: int) -> dict[str, int]:
    """Block sizes (BLOCK_K, BLOCK_C, BLOCK_H) and num_warps for K codes of width H."""
    block_k = triton.next_power_of_2(codes)
    return {
        "BLOCK_K": block_k,
        "BLOCK_C": min(block_k, 16),
        "BLOCK_H": min(256, triton.next_power_of_2(width)),
        "num_warps": 4 if block_k <= 1024 else 16,
    }


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
) -> _Outputs:
    """The fields of `GumbelMix` in their order, then the soft weights of both sides, which are empty without `straight_through`.

    Arguments as in `gumbel_mix`, checked there; seed as the signed number of the same 64 bits.
    """
    outputs = _outputs(logits_q, logits_p, codebook, straight_through)
    batch, codes = logits_q.shape
    width = codebook.size(1)
    plan = blocks(codes, width)
    soft = outputs[8:] if straight_through else (None, None)
    if batch:
        kernels.forward[batch, triton.cdiv(width, plan["BLOCK_H"])](
            *(x.contiguous() for x in (logits_q, logits_p, codebook, sample_ids)),
            *outputs[:8],
            *soft,
            seed,
            codes,
            width,
            tau,
            1 - prior_mix,
            prior_mix,
            HARD=straight_through,
            DTYPE=_TRITON_TYPES[outputs[1].dtype],
            enable_fp_fusion=False,
            **plan,
        )
    return outputs


@gumbel_mix_op.register_fake
def _(logits_q, logits_p, codebook, sample_ids, seed, tau, prior_mix, straight_through):  # type: ignore[no-untyped-def]
    return _outputs(logits_q, logits_p, codebook, straight_through)


@torch.library.custom_op("lpc_kernels::gumbel_mix_backward", mutates_args=())
def gumbel_mix_backward_op(
    logits_q: Tensor,
    logits_p: Tensor,
    codebook: Tensor,
    weights_q: Tensor,
    weights_p: Tensor,
    soft_q: Tensor,
    soft_p: Tensor,
    d_z: Tensor | None,
    d_kl: Tensor | None,
    d_q: Tensor | None,
    d_p: Tensor | None,
    d_entropy_q: Tensor | None,
    d_entropy_p: Tensor | None,
    d_weights_q: Tensor | None,
    d_weights_p: Tensor | None,
    tau: float,
    prior_mix: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both logits and of the codebook, the last zero without `d_z`."""
    batch, codes = logits_q.shape
    width = codebook.size(1)
    plan = blocks(codes, width)
    dtype = _TRITON_TYPES[weights_q.dtype]
    d_logits_q, d_logits_p, d_codebook = _input_gradients(logits_q, logits_p, codebook)
    tall, across = triton.cdiv(codes, plan["BLOCK_C"]), triton.cdiv(width, plan["BLOCK_H"])
    d_mix = None
    if d_z is None:
        d_codebook.zero_()
    else:
        d_z = d_z.contiguous()
        d_mix = torch.empty_like(weights_q)
        if batch:
            fitting = {key: value for key, value in plan.items() if key != "BLOCK_K"}
            kernels.backward_weights[batch, tall](
                d_z, codebook.contiguous(), d_mix, codes, width, DTYPE=dtype, **fitting
            )
    programs = batch + (tall * across if d_z is not None else 0)
    if programs:
        upstream = (d_kl, d_q, d_p, d_entropy_q, d_entropy_p, d_weights_q, d_weights_p)
        kernels.backward_inputs[(programs,)](
            *(x.contiguous() for x in (logits_q, logits_p, weights_q, weights_p, soft_q, soft_p)),
            d_z,
            d_mix,
            *(None if x is None else x.contiguous() for x in upstream),
            d_logits_q,
            d_logits_p,
            d_codebook,
            batch,
            codes,
            width,
            tau,
            1 - prior_mix,
            prior_mix,
            DTYPE=dtype,
            **plan,
        )
    return d_logits_q, d_logits_p, d_codebook


@gumbel_mix_backward_op.register_fake
def _(logits_q: Tensor, logits_p: Tensor, codebook: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _input_gradients(logits_q, logits_p, codebook)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_q, logits_p, codebook, _, _, ctx.tau, ctx.prior_mix, straight_through = inputs
    weights = output[6:8]
    ctx.save_for_backward(logits_q, logits_p, codebook, *weights, *(output[8:] if straight_through else weights))
    # An output that the loss does not read costs nothing, and a filled zero would.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    d_z, d_kl, d_q, d_p, d_entropy_q, d_entropy_p, d_weights_q, d_weights_p = grads[:8]
    gradients = gumbel_mix_backward_op(
        *ctx.saved_tensors,
        d_z,
        d_kl,
        d_q,
        d_p,
        d_entropy_q,
        d_entropy_p,
        d_weights_q,
        d_weights_p,
        ctx.tau,
        ctx.prior_mix,
    )
    return *gradients, None, None, None, None, None


gumbel_mix_op.register_autograd(_backward, setup_context=_setup_context)


def _outputs(logits_q: Tensor, logits_p: Tensor, codebook: Tensor, straight_through: bool) -> _Outputs:
    batch, codes = logits_q.shape
    dtype = torch.promote_types(torch.promote_types(logits_q.dtype, logits_p.dtype), torch.float32)

    def each() -> Tensor:
        return logits_q.new_empty(batch, dtype=dtype)

    def table(count: int = batch) -> Tensor:
        return logits_q.new_empty((count, codes), dtype=dtype)

    soft = batch if straight_through else 0
    z = codebook.new_empty((batch, codebook.size(1)))
    return z, each(), table(), table(), each(), each(), table(), table(), table(soft), table(soft)


def _input_gradients(logits_q: Tensor, logits_p: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_logits_q, d_logits_p, d_codebook = (x.new_empty(x.shape) for x in (logits_q, logits_p, codebook))
    return d_logits_q, d_logits_p, d_codebook


def _shipped(codes: int, width: int, straight_through: bool) -> tuple[Shipped, ...]:
    """The three kernels as training launches them: fp32 logits, a bf16 codebook, a loss of z and the divergence."""
    shape = f"K {codes}, H {width}" + (", straight-through" if straight_through else "")
    plan = blocks(codes, width)
    options = {"num_warps": plan.pop("num_warps")}
    inner = {key: value for key, value in plan.items() if key != "BLOCK_K"}
    tables = (
        "logits_q",
        "logits_p",
        "weights_q",
        "weights_p",
        "soft_q",
        "soft_p",
        "q",
        "p",
        "kl",
        "entropy_q",
        "entropy_p",
    )
    fp32 = dict.fromkeys((*tables, "d_mix", "d_kl", "d_logits_q", "d_logits_p"), "*fp32")
    bf16 = dict.fromkeys(("codebook", "z", "d_z", "d_codebook"), "*bf16")
    scalars = {"seed": "i64", "B": "i32", "K": "i32", "H": "i32", "tau": "fp64", "share_q": "fp64", "share_p": "fp64"}
    types = {**fp32, **bf16, **scalars, "sample_ids": "*i64"}
    unread = ("d_q", "d_p", "d_entropy_q", "d_entropy_p", "d_weights_q", "d_weights_p")
    soft = {} if straight_through else {"soft_q": None, "soft_p": None}

    def row(direction: str, kernel: Any, constants: dict[str, Any], **limits: Any) -> Shipped:
        taken = {name: types[name] for name in kernel.arg_names if name not in constants}
        aligned = tuple(name for name, kind in taken.items() if kind.startswith("*") or name in ("K", "H"))
        name = f"gumbel_mix {direction}, {shape}"
        return Shipped(name=name, kernel=kernel, types=taken, constants=constants, aligned=aligned, **limits)

    exact = {"options": {**options, "enable_fp_fusion": False}, "fused_fp64": False}
    return (
        row("forward", kernels.forward, {**plan, **soft, "HARD": straight_through, "DTYPE": tl.float32}, **exact),
        row("backward of weights", kernels.backward_weights, {**inner, "DTYPE": tl.float32}, options=options),
        row(
            "backward of inputs",
            kernels.backward_inputs,
            {**plan, **dict.fromkeys(unread), "DTYPE": tl.float32},
            options=options,
        ),
    )


SHIPPED = (*_shipped(64, 4096, straight_through=False), *_shipped(1024, 4096, straight_through=True))
