"""The kernels of `gumbel_mix` as training launches them: fp32 logits, a bf16 codebook, a loss of z and of the KL."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from lpc_kernels.gumbel_mix import triton_kernels as kernels
from lpc_kernels.gumbel_mix.triton_backend import blocks
from lpc_kernels.shipped import Shipped, aligned_arguments

_PAIRED = ("logits", "weights", "soft", "entropy")
_FP32 = (
    *(f"{name}_{side}" for name in _PAIRED for side in ("q", "p")),
    *("q", "p", "kl", "d_mix", "d_kl", "d_logits_q", "d_logits_p"),
)
_TYPES = {
    **dict.fromkeys(_FP32, "*fp32"),
    **dict.fromkeys(("codebook", "z", "d_z", "d_codebook"), "*bf16"),
    **dict.fromkeys(("B", "K", "H"), "i32"),
    **dict.fromkeys(("tau", "mix_q", "mix_p"), "fp64"),
    "seed": "i64",
    "sample_ids": "*i64",
}
_NO_GRADIENT = dict.fromkeys(("d_q", "d_p", "d_entropy_q", "d_entropy_p", "d_weights_q", "d_weights_p"))


def _shipped(num_codes: int, hidden_size: int, straight_through: bool) -> tuple[Shipped, ...]:
    shape = f"K {num_codes}, H {hidden_size}" + (", straight-through" if straight_through else "")
    plan = blocks(num_codes, hidden_size)
    options = {"num_warps": plan.pop("num_warps")}
    without_k = {name: value for name, value in plan.items() if name != "BLOCK_K"}
    no_soft_weights = {} if straight_through else {"soft_q": None, "soft_p": None}

    def configuration(direction: str, kernel: Any, constants: dict[str, Any], **limits: Any) -> Shipped:
        constants = {**constants, "DTYPE": tl.float32}
        types = {name: _TYPES[name] for name in kernel.arg_names if name not in constants}
        return Shipped(
            name=f"gumbel_mix {direction}, {shape}",
            kernel=kernel,
            types=types,
            constants=constants,
            aligned=aligned_arguments(kernel, types, ("K", "H")),
            **limits,
        )

    return (
        configuration(
            "forward",
            kernels.forward,
            {**plan, **no_soft_weights, "HARD": straight_through},
            options={**options, "enable_fp_fusion": False},
            fused_fp64=False,
        ),
        configuration("backward of weights", kernels.backward_weights, without_k, options=options),
        configuration("backward of inputs", kernels.backward_inputs, {**plan, **_NO_GRADIENT}, options=options),
    )


SHIPPED = (*_shipped(64, 4096, straight_through=False), *_shipped(1024, 4096, straight_through=True))
