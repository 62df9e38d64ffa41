"""`--log-straggler-interval`: which rank computes slowest, and what memory each rank takes.

The time of a step is the same on all ranks, for they wait for each other. So what each rank does without the others is
measured: on a CPU, the time per step in which the main thread was not asleep, as Linux counts it: it computes, or waits
for a core that others use. On a GPU, the time of a matrix product that every rank computes when the line is due, and,
with the extra `resiliency`, how fast the kernels of the steps themselves are (`kernel_times`).
"""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_lpc.command_line import WriteFailed
from megatron_lpc.config import ConfigError
from megatron_lpc.platform import Platform
from megatron_lpc.training.kernel_times import KernelTimes, has_kernel_times
from megatron_lpc.training.setup import RunContext

RANKS_FILE = "ranks.jsonl"
_SCHEDULED = Path("/proc/thread-self/schedstat")
"""Nanoseconds that the thread was on a core, and that it was ready and had none; and a count."""
_PROBE_SIZE = 4096
_PROBES = 20


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """What one rank found about itself."""

    rank: int
    host: str
    seconds: float
    """Of computing: per step on a CPU, of the probe on a GPU."""
    host_gb: float
    """Resident memory of the process, in 1e9 bytes."""
    device_gb: float
    """Most memory that tensors had on the device since the start, in 1e9 bytes; 0 on a CPU."""
    kernel_speed: float | None = None
    """Of the kernels of its steps, as a share of the fastest rank's; None where it was not measured."""


class Stragglers:
    """Compares the ranks of a run every `log_straggler_interval` steps.

    Raises:
        ConfigError: this system does not say for how long a thread was asleep.
    """

    def __init__(self, context: RunContext) -> None:
        logging, save = context.config.logging, context.config.checkpoint.save
        self._interval = logging.log_straggler_interval
        if self._interval and not _SCHEDULED.exists():
            raise ConfigError(f"--log-straggler-interval {self._interval}: this system has no {_SCHEDULED}; unset it")
        measures = self._interval > 0 and context.platform.is_cuda and has_kernel_times() and not logging.profile
        self._kernels = KernelTimes() if measures else None
        self._context = context
        self._file = Path(save) / RANKS_FILE if save else None
        self._steps, self._busy, self._began = 0, 0.0, 0.0

    def begin_step(self) -> None:
        """A step begins; its data are there."""
        if self._interval:
            self._began = busy_seconds()
        if self._kernels is not None:
            self._kernels.begin_step()

    def end_step(self, iteration: int) -> str | None:
        """Step `iteration`, from 1, is done.

        Collectives: every `log_straggler_interval` steps a gather of objects on rank 0 of the world, between hosts, and
        those of `KernelTimes.speeds`.

        Returns:
            A sentence about all ranks, on rank 0 when it is due. SAVE/ranks.jsonl then has a line with each of them.
        """
        if not self._interval:
            return None
        self._steps, self._busy = self._steps + 1, self._busy + busy_seconds() - self._began
        if self._kernels is not None:
            self._kernels.end_step()
        if iteration % self._interval:
            return None
        speeds = self._kernels.speeds() if self._kernels is not None else {}
        loads: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(self._own_load(), loads, group=self._context.groups.host)
        self._steps, self._busy = 0, 0.0
        if loads is None:
            return None
        loads = [replace(load, kernel_speed=speeds.get(load.rank)) for load in loads]
        if self._file is not None:
            append_line(self._file, {"iteration": iteration, "ranks": [asdict(load) for load in loads]})
        what = "probe of the device" if self._context.platform.is_cuda else "computing per step"
        return sentence(loads, iteration, what)

    def _own_load(self) -> RankLoad:
        platform = self._context.platform
        return RankLoad(
            rank=dist.get_rank(),
            host=socket.gethostname(),
            seconds=probe_seconds(platform) if platform.is_cuda else self._busy / self._steps,
            host_gb=int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e9,
            device_gb=torch.cuda.max_memory_allocated(platform.device) / 1e9 if platform.is_cuda else 0.0,
        )


def busy_seconds() -> float:
    """In which this thread was not asleep, since its start: on a core, or ready and without one."""
    on_core, without_core, _ = _SCHEDULED.read_text().split()
    return (int(on_core) + int(without_core)) / 1e9


def probe_seconds(platform: Platform, size: int = _PROBE_SIZE) -> float:
    """Of a matrix product of bf16, the median of some."""
    matrix = torch.ones(size, size, dtype=torch.bfloat16, device=platform.device)
    times = []
    for _ in range(_PROBES):
        platform.synchronize()
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        platform.synchronize()
        times.append(time.perf_counter() - began)
    return median(times)


def sentence(loads: Sequence[RankLoad], iteration: int, what: str) -> str:
    """Least, median and most of all ranks, with who it is."""
    slowest = max(loads, key=lambda load: load.seconds)
    seconds = [load.seconds for load in loads]
    middle = median(seconds)
    ratio = f", {slowest.seconds / middle:.2f} x the median" if middle else ""
    parts = [
        f"ranks at step {iteration}: {what} {min(seconds):.3g} / {middle:.3g} / {max(seconds):.3g} s "
        "(min / median / max)",
        f"slowest rank {slowest.rank} on {slowest.host}{ratio}",
        *_kernel_speeds(loads),
        _memory("host", {load.rank: load.host_gb for load in loads}),
    ]
    if any(load.device_gb for load in loads):
        parts.append(_memory("device", {load.rank: load.device_gb for load in loads}))
    return "; ".join(parts)


def _kernel_speeds(loads: Sequence[RankLoad]) -> list[str]:
    measured = {load: load.kernel_speed for load in loads if load.kernel_speed is not None}
    if not measured:
        return []
    slowest = min(measured, key=lambda load: measured[load])
    return [
        f"slowest kernels on rank {slowest.rank} on {slowest.host}, {measured[slowest]:.2f} x the fastest rank's speed"
    ]


def _memory(where: str, of_ranks: dict[int, float]) -> str:
    most = max(of_ranks, key=lambda rank: of_ranks[rank])
    return f"memory of the {where} {min(of_ranks.values()):.3g} to {of_ranks[most]:.3g} GB (rank {most})"


def append_line(file: Path, content: dict[str, Any]) -> None:
    """Append a line of JSON.

    Raises:
        WriteFailed: the disk is full, for instance.
    """
    try:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(content) + "\n")
    except OSError as error:
        raise WriteFailed.of(file, error) from error
