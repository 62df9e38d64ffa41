"""The one table of the kernel configurations that ship: what `tools/inspect_kernels.py` compiles ahead of time and holds to limits.

A module with Triton kernels joins by naming itself in `MODULES` and binding `SHIPPED: tuple[Shipped, ...]`. It should make the rows with
the very functions that its launcher asks for blocks and warps, so that what is inspected is what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

MODULES: tuple[str, ...] = ("lpc_kernels.gumbel_mix_op", "lpc_kernels.pair_logps_triton")
"""Modules that bind `SHIPPED`. Importing them needs Triton."""
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""A100, H100 and H200, B200, MI300."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One configuration of one kernel, and the limits it keeps on every target. No stack and no excess of shared memory: always asked."""

    name: str
    """Unique: the function it serves, the pass, the shape it is made for."""
    kernel: Any
    """The `@triton.jit` function."""
    types: Mapping[str, str]
    """Triton type of each run-time argument, as `"*bf16"`, `"i32"`, `"fp32"`. The other arguments are constants."""
    constants: Mapping[str, Any]
    """`tl.constexpr` arguments, and None for a pointer that is not given."""
    aligned: tuple[str, ...] = ()
    """Run-time arguments divisible by 16: pointers and strides, as the launcher finds them for tensors of usual shapes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Launch options: num_warps, num_stages, enable_fp_fusion and the like."""
    targets: tuple[str, ...] = TARGETS
    matrix: bool = False
    """Whether it multiplies matrices, and so must use matrix instructions (HGMMA on sm_90, tcgen05 on sm_100)."""
    fused_fp64: bool = True
    """False: no fp64 product and sum may be fused, for the same bits everywhere."""


def shipped() -> tuple[Shipped, ...]:
    """Every row of every module, in the order of `MODULES`. Raises ValueError for two rows of one name."""
    rows: tuple[Shipped, ...] = sum((import_module(module).SHIPPED for module in MODULES), ())
    names = [row.name for row in rows]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"shipped kernels: two rows are called {', '.join(sorted(twice))}")
    return rows
