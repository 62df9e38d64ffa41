"""Kernels of GPUs by nvidia-resiliency-ext, with given times in place of CUPTI's: what it compares is its own code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Not of the extra `test`: it brings pynvml, of which torch then warns in every process.
pytest.importorskip("nvidia_resiliency_ext.straggler", reason="the extra `resiliency` is not installed")


@dataclass
class Kernel:
    """Statistics of one kernel, as the extension of CUPTI gives them, in microseconds."""

    median: float
    num_calls: int = 10
    stddev: float = 0.0

    @property
    def min(self) -> float:
        return self.median

    max = avg = min


class Cupti:
    """Stands for `CuptiManager`: counts what is profiled, and gives the kernels of this rank."""

    kernels: dict[str, Kernel]
    calls: list[str]

    def __init__(self, **_: int) -> None:
        self.calls = []

    def __getattr__(self, name: str):
        def call():
            self.calls.append(name)
            return self.kernels if name == "get_results" else None

        return call


def compare(rank: int, folder: str) -> None:
    """Rank 1 takes twice as long for the matrix product, which takes most of the time, and all ranks wait in NCCL."""
    from nvidia_resiliency_ext.straggler import straggler

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    Cupti.kernels = {
        "gemm": Kernel(90.0 * (1 + rank)),
        "norm": Kernel(20.0),
        "ncclDevKernel": Kernel(1000.0 - 900 * rank),
        f"only on rank {rank}": Kernel(1.0),
    }
    straggler.CuptiManager = Cupti
    torch.cuda.synchronize = lambda: None
    from megatron_lpc.training.kernel_times import KernelTimes, has_kernel_times

    assert has_kernel_times()
    KernelTimes()
    times = KernelTimes()  # Of a second run in this process.
    for _ in range(2):
        times.begin_step()
        times.end_step()
    speeds = times.speeds()
    calls = straggler.Detector.cupti_manager.calls
    assert calls == ["initialize", *["start_profiling", "stop_profiling"] * 2, "get_results", "reset_results"]
    if rank == 0:
        assert speeds == pytest.approx({0: 1.0, 1: (180 * 0.5 + 20) / 200})
        (Path(folder) / "compared").touch()
    dist.destroy_process_group()


def test_the_rank_with_slow_kernels_is_known(tmp_path: Path) -> None:
    mp.spawn(compare, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "compared").exists()
