"""Which rank computes slowest."""

from __future__ import annotations

import time
from typing import Any

import torch

from megatron_lpc.platform import select_platform
from megatron_lpc.training.stragglers import RankLoad, busy_seconds, probe_seconds, sentence


def load(rank: int, **other: Any) -> RankLoad:
    values = {"rank": rank, "host": f"host{rank}", "seconds": 0.5, "host_gb": 1.5, "device_gb": 0.0}
    return RankLoad(**(values | other))


def test_a_line_names_who_is_slow_and_large() -> None:
    loads = [load(0), load(1, seconds=0.75), load(2, seconds=0.25, host_gb=2.0)]
    line = (
        "ranks at step 10: computing per step 0.25 / 0.5 / 0.75 s (min / median / max); slowest rank 1 on host1, "
        "1.50 x the median; memory of the host 1.5 to 2 GB (rank 2)"
    )
    assert sentence(loads, 10, "computing per step") == line
    loads = [load(0, kernel_speed=1.0), load(1, kernel_speed=0.625), load(2)]
    assert "; slowest kernels on rank 1 on host1, 0.62 x the fastest rank's speed; memory" in sentence(
        loads, 10, "probe"
    )
    loads = [load(0, device_gb=31.0), load(1, device_gb=35.25)]
    assert sentence(loads, 10, "probe").endswith("; memory of the device 31 to 35.2 GB (rank 1)")


def test_sleep_is_no_work() -> None:
    began = busy_seconds()
    time.sleep(1.0)
    asleep = busy_seconds() - began
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    worked = busy_seconds() - began - asleep
    assert asleep < 0.5  # On a busy machine it waits for a core when it wakes up.
    assert worked > 0.25


def test_probe() -> None:
    torch.manual_seed(1)
    assert 0 < probe_seconds(select_platform("cpu", 0), size=64) < 5
