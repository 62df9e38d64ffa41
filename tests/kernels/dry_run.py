"""Triton's launches for an H100 without a GPU: everything that Triton does but the launch.

The project's launch code runs on CPU tensors. Triton binds the arguments, specialises the kernel on their types, values
and alignment, compiles it and assembles it with `ptxas` for sm_90; a driver stands in for CUDA's, and records in place
of launching. So outputs have no values, and what is checked is that every launch binds, compiles and fits.

Importing this module needs Triton, and kernels that are not interpreted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from lpc_kernels import triton_support
from lpc_kernels.gumbel_mix import triton_kernels as mix_kernels
from lpc_kernels.pair_logps import triton_kernels as pair_kernels
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

KERNELS: tuple[JITFunction, ...] = (
    *(mix_kernels.forward, mix_kernels.backward_weights, mix_kernels.backward_inputs),
    *(pair_kernels.token_stats, pair_kernels.logits_gradient, pair_kernels.fused_stats),
    pair_kernels.many_latents_gradient,
)
"""Every kernel that the project launches."""
_H100 = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}
_INTEGERS = {"i32": (-(2**31), 2**31 - 1), "i64": (-(2**63), 2**63 - 1)}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int
    """Per thread."""
    stack: int
    """Bytes of local memory per thread, where spilled registers go."""


@dataclass(frozen=True)
class Launch:
    """A launch that was bound and compiled."""

    kernel: str
    types: dict[str, str]
    """Triton's type of each argument; "constexpr" for one that is compiled in."""
    arguments: dict[str, Any]
    grid: tuple[int, int, int]
    shared: int
    """Bytes of shared memory per block."""
    resources: Resources


@dataclass
class DryRun:
    """What happened so far."""

    launches: list[Launch] = field(default_factory=list)
    compilations: list[str] = field(default_factory=list)
    """The kernel of each compilation."""


@contextmanager
def dry_run(cache: Path, *, compiles: bool = True) -> Iterator[DryRun]:
    """CPU tensors go to Triton, which records what it would launch on an H100.

    cache: Triton's folder of compiled kernels.
    compiles: False only counts what would be compiled, which costs nothing.
    """
    record = DryRun()
    before = driver._active
    compile_kernel = JITFunction._do_compile

    def counted(kernel: JITFunction, key: str, *arguments: Any) -> Any:
        record.compilations.append(kernel.fn.__name__)
        if compiles:
            return compile_kernel(kernel, key, *arguments)
        known, *_ = kernel.device_caches[0]
        known[key] = _NotCompiled()
        return known[key]

    _forget_kernels()
    driver.set_active(_Driver(record))
    try:
        with (
            patch.object(triton_support, "INTERPRETED", True),
            patch.object(JITFunction, "_do_compile", counted),
            patch.dict("os.environ", TRITON_CACHE_DIR=str(cache)),
        ):
            yield record
    finally:
        driver._active = before
        _forget_kernels()


def _forget_kernels() -> None:
    """Drop compiled kernels, which belong to the driver that was active."""
    for kernel in KERNELS:
        kernel.device_caches.clear()


class _NotCompiled:
    """Takes the place of a compiled kernel."""

    function = packed_metadata = None

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *_: Any) -> None:
        return None


class _Driver:
    """The parts of a Triton driver that a launch uses."""

    def __init__(self, record: DryRun) -> None:
        self.utils = SimpleNamespace(load_binary=_load_binary, get_device_properties=lambda device: _H100)
        self.launcher_cls = lambda source, metadata: _Launcher(record, source, metadata)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _load_binary(name: str, cubin: bytes, shared: int, device: int) -> tuple[None, Resources, int, int, int]:
    """Module, function, registers, spills and threads per block, as a driver tells them after loading a kernel."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    # Registers are given to warps in units of 8 per thread.
    warps = _H100["max_num_regs"] // (-(-registers // 8) * 8) // 32
    threads = min(1024, 32 * warps)
    return None, Resources(registers, stack + local), registers, 0, threads


class _Launcher:
    """Checks the arguments as CUDA's launcher converts them, and records them."""

    def __init__(self, record: DryRun, source: Any, metadata: Any) -> None:
        self.record = record
        self.kernel = source.fn.fn.__name__
        self.types: dict[str, str] = dict(source.signature)
        self.shared = metadata.shared

    def __call__(self, x: int, y: int, z: int, stream: int, function: Resources, *rest: Any) -> None:
        # Packed metadata, launch metadata and two hooks come first.
        values: Sequence[Any] = rest[4:]
        arguments = dict(zip(self.types, values, strict=True))
        for name, kind in self.types.items():
            _check_argument(f"{self.kernel}: {name}", kind, arguments[name])
        assert 0 < x < 2**31, f"{self.kernel}: a grid of {x} x {y} x {z}"
        assert 0 < y < 2**16, f"{self.kernel}: a grid of {x} x {y} x {z}"
        assert z == 1
        launch = Launch(self.kernel, self.types, arguments, (x, y, z), self.shared, function)
        self.record.launches.append(launch)


def _check_argument(name: str, kind: str, value: Any) -> None:
    """Asserts that a value converts to the type that its kernel was compiled for."""
    if kind == "constexpr":
        return
    if kind.startswith("*"):
        assert isinstance(value, torch.Tensor), f"{name} is {value!r}, compiled for {kind}"
    elif kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        assert isinstance(value, int), f"{name} is {value!r}, compiled for {kind}"
        assert low <= value <= high, f"{name} is {value}, compiled for {kind}"
    else:
        assert kind in ("fp32", "fp64"), f"{name} has type {kind}"
        assert isinstance(value, int | float), f"{name} is {value!r}, compiled for {kind}"
