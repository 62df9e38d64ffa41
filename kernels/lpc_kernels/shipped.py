"""The table of the kernel configurations that ship; `inspect_kernels.py` compiles them and checks their limits.

A module with kernels joins by naming itself in `MODULES` and binding `SHIPPED: tuple[Shipped, ...]`. It should make
the entries with the very functions that its backend asks for blocks and warps, so that what is inspected is what runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

MODULES: tuple[str, ...] = ("lpc_kernels.gumbel_mix.shipped", "lpc_kernels.pair_logps.shipped")
"""Modules that bind `SHIPPED`. Importing them needs Triton."""
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
"""A100, H100 and H200, B200, MI300."""


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One configuration of one kernel, and its limits on every target.

    No stack and no excess of shared memory: always required.
    """

    name: str
    """Unique: the function it serves, the pass, the shape it is made for."""
    kernel: Any
    """The `@triton.jit` function."""
    types: Mapping[str, str]
    """Triton type of each run-time argument, as `"*bf16"`, `"i32"`, `"fp32"`. The other arguments are constants."""
    constants: Mapping[str, Any]
    """`tl.constexpr` arguments, and None for a pointer that is not given."""
    aligned: tuple[str, ...] = ()
    """Run-time arguments divisible by 16: pointers and strides, as the launcher finds them for tensors of usual
    shapes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Launch options: num_warps, num_stages, enable_fp_fusion and the like."""
    targets: tuple[str, ...] = TARGETS
    matrix: bool = False
    """Whether it multiplies matrices, and so must use matrix instructions (HGMMA on sm_90, tcgen05 on sm_100)."""
    fused_fp64: bool = True
    """False: no fp64 product and sum may be fused, for the same bits everywhere."""


def aligned_arguments(kernel: Any, types: Mapping[str, str], sizes: Collection[str]) -> tuple[str, ...]:
    """The pointers of a kernel, and those of its sizes that are divisible by 16, as Triton specialises it on them."""
    varying = {*kernel.do_not_specialize, *kernel.do_not_specialize_on_alignment}
    candidates = (name for name, kind in types.items() if kind.startswith("*") or name in sizes)
    return tuple(name for name in candidates if name not in varying)


def shipped() -> tuple[Shipped, ...]:
    """Every configuration of every module, in the order of `MODULES`. Raises ValueError for two of one name."""
    configurations: list[Shipped] = []
    for module in MODULES:
        configurations.extend(import_module(module).SHIPPED)
    names = [configuration.name for configuration in configurations]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ValueError(f"shipped kernels: two configurations are called {', '.join(sorted(duplicates))}")
    return tuple(configurations)
