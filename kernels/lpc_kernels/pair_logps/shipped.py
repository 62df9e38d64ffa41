"""The kernels of `pair_logps` as they ship: bf16 logits of a Llama-3-8B LM head, without latents or with some."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from lpc_kernels.pair_logps import triton_kernels as kernels
from lpc_kernels.pair_logps.triton_backend import LATENTS_AT_A_TIME, fused_blocks, gradient_blocks, stats_blocks
from lpc_kernels.shipped import Shipped, aligned_arguments

_SIZES = ("C", "V", "H", "L", "P", "S", "stride", "hidden_stride", "weight_stride", "first_token")
_TYPES = {
    **dict.fromkeys(("stats", "running_max", "running_sum", "scale", "bias", "d_bias"), "*fp32"),
    **dict.fromkeys(("product", "hidden", "weight"), "*bf16"),
    **dict.fromkeys(("targets", "cu_seqlens", "pair_of_segment"), "*i64"),
    **dict.fromkeys(_SIZES, "i32"),
    "segment_ids": "*i32",
    "softcap": "fp64",
    "rate": "fp64",
}
_ALIGNED_SIZES = ("V", "H", "stride", "hidden_stride", "weight_stride")


def _shipped(num_latents: int) -> tuple[Shipped, ...]:
    """The three kernels for a number of latents; 0: without."""
    count = max(num_latents, 1)
    bf16 = torch.bfloat16
    gradient = kernels.many_latents_gradient if count > LATENTS_AT_A_TIME else kernels.logits_gradient
    return (
        _configuration(kernels.token_stats, num_latents, stats_blocks(count), ENTROPY=False, DTYPE=tl.float32),
        _configuration(gradient, num_latents, gradient_blocks(count), STORE=True, DTYPE=tl.float32),
        _configuration(kernels.fused_stats, num_latents, fused_blocks(bf16), ENTROPY=False, EVEN_H=True),
    )


def _configuration(kernel: Any, num_latents: int, blocks: dict[str, int], **constants: Any) -> Shipped:
    fixed = {**blocks, **constants, "CAPPED": False}
    if num_latents == 0:
        fixed |= {"bias": None, "d_bias": None}
    if num_latents <= 1:
        # The launcher makes a constant of an integer argument that is 1.
        fixed["L"] = 1
    fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    types = {name: _TYPES[name] for name in kernel.arg_names if name not in fixed}
    latents = {0: "no latent", 1: "1 latent"}.get(num_latents, f"{num_latents} latents")
    return Shipped(
        name=f"pair_logps {kernel.__name__}, {latents}",
        kernel=kernel,
        types=types,
        constants=fixed,
        aligned=aligned_arguments(kernel, types, _ALIGNED_SIZES),
        options={"num_warps": blocks["num_warps"]},
        matrix=kernel is kernels.fused_stats,
    )


SHIPPED = tuple(configuration for num_latents in (0, 1, 2, 64) for configuration in _shipped(num_latents))
