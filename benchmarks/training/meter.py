"""Times and memory of a training."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch

from benchmarks.resident_memory import resident


class Meter:
    """Seconds of the steps after the first, and the peak of memory, both from now on."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._held = torch.cuda.memory_allocated() if self._on_gpu else resident("VmRSS")
        self._ends: list[float] = []

    def step_ended(self) -> None:
        """To be called at the end of every step, the first included."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())

    def result(self) -> dict[str, Any]:
        """`seconds` of each step, and `peak_gb` beyond what was held at the start, in 10^9 bytes."""
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else resident("VmHWM")
        return {"seconds": [end - start for start, end in pairwise(self._ends)], "peak_gb": (peak - self._held) / 1e9}
