"""Seconds of a step, and the peak rates of the machine measured by them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.kernels.pair_case import PairCase

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds gone by; or those that the threads of this process ran, which others on the machine disturb less."""


def seconds(step: Callable[[], object], device: str, clock: str = "wall") -> float:
    """Of one run: by a clock of `CLOCKS` on CPU; on CUDA by the GPU's own, from a cold second-level cache."""
    if device == "cpu":
        start = CLOCKS[clock]()
        step()
        return CLOCKS[clock]() - start
    # Larger than the second-level cache of any GPU.
    torch.empty(1 << 28, dtype=torch.int8, device=device).zero_()
    start_event = torch.cuda.Event(enable_timing=True)
    end_event = torch.cuda.Event(enable_timing=True)
    start_event.record()
    step()
    end_event.record()
    torch.cuda.synchronize()
    return start_event.elapsed_time(end_event) / 1e3


def peak_flops(case: PairCase, rounds: int, clock: str = "wall") -> float:
    """FLOP/s of the vendor's [N, H] x [H, V] product of the loss tokens."""
    tokens = max(1, case.loss_tokens)
    left = torch.randn(tokens, case.hidden_size, dtype=case.dtype, device=case.device)
    right = torch.randn(case.vocab_size, case.hidden_size, dtype=case.dtype, device=case.device).t()
    product = left @ right
    work = 2 * tokens * case.vocab_size * case.hidden_size
    return work / _median(lambda: torch.mm(left, right, out=product), case.device, rounds, clock)


def peak_bandwidth(device: str, rounds: int, clock: str = "wall") -> float:
    """Bytes/s of a large copy, read and written ones counted."""
    size = 1 << (27 if device == "cpu" else 30)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _median(lambda: target.copy_(source), device, rounds, clock)


def _median(step: Callable[[], object], device: str, rounds: int, clock: str) -> float:
    step()
    return statistics.median(seconds(step, device, clock) for _ in range(rounds))
