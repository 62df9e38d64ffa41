"""Launches of the Triton kernels of `pair_logps`, and the configurations that ship. Arguments as in `row_work.py`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpc_kernels import pair_logps_kernels as kernels
from lpc_kernels.head import Head
from lpc_kernels.runs import Runs
from lpc_kernels.shipped import Shipped
from lpc_kernels.vocab_parallel import merge_stats

_TRITON_TYPES = {torch.float64: tl.float64, torch.float32: tl.float32}
_FUSED = {"BLOCK_C": 128, "BLOCK_V": 128, "BLOCK_H": 64, "STAGES": 3, "num_warps": 8}


def row_blocks(latents: int) -> dict[str, int]:
    """Blocks of `row_stats` for L latents."""
    count = triton.next_power_of_2(latents)
    return {"LATENTS": count, "BLOCK_V": max(256, 4096 // count), "num_warps": 8}


def gradient_blocks(latents: int) -> dict[str, int]:
    """Blocks of `logits_gradient` for L latents."""
    count = triton.next_power_of_2(latents)
    return {"LATENTS": count, "BLOCK_C": max(1, 8 // count), "BLOCK_V": 256, "num_warps": 8}


def fused_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Blocks of `fused_stats`; fp32 takes twice the shared memory, and has no matrix instructions anyway."""
    return (
        _FUSED
        if dtype.itemsize == 2
        else {**_FUSED, "BLOCK_C": 64, "BLOCK_V": 64, "BLOCK_H": 32, "STAGES": 2, "num_warps": 4}
    )


def row_stats(
    base: Tensor, bias: Tensor | None, targets: Tensor, runs: Runs, chunk: slice, head: Head, entropy: bool
) -> Tensor:
    """`row_work.row_stats` on a GPU, for C > 0 rows and V > 0 words."""
    rows, words = base.shape
    stats = _empty_stats(base, bias, entropy)
    latents, pairs = stats.size(1), 1 if bias is None else bias.size(1)
    kernels.row_stats[(rows,)](
        base, bias, head.locate(targets), runs.of_rows[chunk], runs.pairs, stats, rows, words, latents, pairs, base.stride(0),
        *_shape(head),
        ENTROPY=entropy, CAPPED=head.softcap is not None, DTYPE=_TRITON_TYPES[stats.dtype], **row_blocks(latents),
    )  # fmt: skip
    return stats


def logits_gradient_(
    base: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    stats: Tensor,
    scale: Tensor,
    runs: Runs,
    chunk: slice,
    head: Head,
    d_bias: Tensor | None,
) -> None:
    """`row_work.logits_gradient_` on a GPU, for C > 0 rows and V > 0 words."""
    rows, words = base.shape
    latents, count = scale.size(0), runs.pairs.numel()
    pairs = count if bias is None else bias.size(1)
    plan = gradient_blocks(latents)
    kernels.logits_gradient[triton.cdiv(words, plan["BLOCK_V"]), pairs](
        base, bias, head.locate(targets), runs.edges, runs.pairs, *(x.contiguous() for x in (stats[0], stats[1], scale)), d_bias,
        rows, words, latents, pairs, count, base.stride(0), chunk.start, *_shape(head),
        CAPPED=head.softcap is not None, DTYPE=_TRITON_TYPES[scale.dtype], **plan,
    )  # fmt: skip


def fused_stats(
    hidden: Tensor,
    words: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    runs: Runs,
    chunk: slice,
    head: Head,
    entropy: bool,
) -> Tensor:
    """`row_stats` of h W^T without h W^T in memory: hidden [C, H] in fp32, bf16 or fp16, words [V, H], C > 0 and V > 0."""
    hidden, words = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden, words))
    (rows, width), count = hidden.shape, words.size(0)
    plan = fused_blocks(hidden.dtype)
    tiles = triton.cdiv(count, plan["BLOCK_V"])
    latents, pairs = (1, 1) if bias is None else bias.shape[:2]
    parts = hidden.new_empty((tiles, 4 if entropy else 3, latents, rows), dtype=torch.float32)
    kernels.fused_stats[triton.cdiv(rows, plan["BLOCK_C"]), tiles](
        hidden, words, bias, head.locate(targets), runs.of_rows[chunk], runs.edges, runs.pairs, parts,
        rows, count, width, latents, pairs, hidden.stride(0), words.stride(0), chunk.start, *_shape(head),
        ENTROPY=entropy, CAPPED=head.softcap is not None, EVEN_H=width % plan["BLOCK_H"] == 0, **plan,
    )  # fmt: skip
    return merge_stats(parts)


def _shape(head: Head) -> tuple[float, float]:
    return head.softcap or 1.0, 1 / head.temperature


def _empty_stats(base: Tensor, bias: Tensor | None, entropy: bool) -> Tensor:
    dtype = torch.promote_types(base.dtype, torch.float32)
    return base.new_empty((4 if entropy else 3, 1 if bias is None else bias.size(0), base.size(0)), dtype=dtype)


def _shipped(latents: int) -> tuple[Shipped, ...]:
    """The kernels for bf16 logits of a Llama-3-8B head, without latents (0) or with some."""
    fp32 = dict.fromkeys(("stats", "peak", "total", "scale", "bias", "d_bias"), "*fp32")
    bf16 = dict.fromkeys(("base", "hidden", "weight"), "*bf16")
    int64 = dict.fromkeys(("targets", "edges", "pair_of_run"), "*i64")
    sizes = dict.fromkeys(
        ("C", "V", "H", "L", "P", "R", "stride", "hidden_stride", "weight_stride", "first_row"), "i32"
    )
    types = {**fp32, **bf16, **int64, "run_of_row": "*i32", **sizes, "softcap": "fp64", "rate": "fp64"}
    unread = {} if latents else {"bias": None, "d_bias": None}
    one = {"L": 1} if latents <= 1 else {}

    def row(kernel: Any, plan: dict[str, int], matrix: bool = False, **constants: Any) -> Shipped:
        fixed = {
            name: value for name, value in {**unread, **one, **plan, **constants}.items() if name in kernel.arg_names
        }
        fixed["CAPPED"] = False
        taken = {name: types[name] for name in kernel.arg_names if name not in fixed}
        aligned = tuple(
            name
            for name, kind in taken.items()
            if kind[0] == "*" or name in ("V", "H", "stride", "hidden_stride", "weight_stride")
        )
        name = f"pair_logps {kernel.__name__}, " + (
            f"{latents} latent{'s' * (latents > 1)}" if latents else "no latent"
        )
        options = {"num_warps": plan["num_warps"]}
        return Shipped(
            name=name, kernel=kernel, types=taken, constants=fixed, aligned=aligned, options=options, matrix=matrix
        )

    return (
        row(kernels.row_stats, row_blocks(max(latents, 1)), ENTROPY=False, DTYPE=tl.float32),
        row(kernels.logits_gradient, gradient_blocks(max(latents, 1)), DTYPE=tl.float32),
        row(kernels.fused_stats, fused_blocks(torch.bfloat16), matrix=True, ENTROPY=False, EVEN_H=True),
    )


SHIPPED = tuple(row for latents in (0, 1, 2) for row in _shipped(latents))
