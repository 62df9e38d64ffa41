"""Nothing grows in a long run: memory, open files, threads and processes of each rank stay what they are.

    pytest -m slow -s tests/distributed/test_growth.py

trains 1,000 steps per case, with 200 saves and 50 evaluations, and prints slopes.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from killed_run import PROCESSES, KilledRun
from process_tree import children
from run_files import steps_done

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 1000
WARM_UP = 200
"""Steps after which every cache is full."""
MOST_MB = 2
"""Megabytes per 1,000 steps by which the resident memory may still grow then: pages that are touched once, late."""
CASES = {
    "sync": [],
    "async-streaming": ["--async-save", "--streaming", "--shuffle-buffer-size", "16", "--tensorboard"],
}


@dataclass(frozen=True)
class Sample:
    """A rank after a step."""

    step: int
    resident: float
    """Megabytes."""
    files: int
    threads: int
    children: int


@dataclass(frozen=True)
class Growth:
    """Of a rank, after the warm-up. Pairs are medians of the first and the second half of the samples."""

    samples: int
    megabytes_at_first: float
    """Slope of the resident memory in the first half, in MB per 1,000 steps."""
    megabytes: float
    """In the second half."""
    files: tuple[int, int]
    threads: tuple[int, int]
    children: tuple[int, int]


@pytest.mark.parametrize("case", CASES)
def test_nothing_grows(tiny_run, tmp_path: Path, case: str) -> None:
    save = tmp_path / "run"
    flags = ["--config", tiny_run.config, "--train-iters", str(STEPS), "--save", str(save), *CASES[case]]
    flags += ["--save-interval", "5", "--keep-last", "1", "--eval-interval", "20", "--eval-iters", "1"]
    of_ranks: list[list[Sample]] = [[] for _ in range(PROCESSES)]
    run = KilledRun(flags, save, tmp_path / "output")
    try:
        run.start()
        while (step := steps_done(save)) < STEPS - 5:
            assert run.launcher is not None
            assert run.launcher.is_alive(), run.output()
            if step:
                for samples, pid in zip(of_ranks, run.processes(), strict=True):
                    samples.append(sample(step, pid))
            time.sleep(0.2)
        run.finish()
    finally:
        run.end()

    growths = [growth(samples) for samples in of_ranks]
    for rank, of_rank in enumerate(growths):
        print(f"{case}, rank {rank}: {of_rank}")
    for of_rank in growths:
        assert of_rank.megabytes < MOST_MB
        assert all(second <= first for first, second in (of_rank.files, of_rank.threads, of_rank.children))


def growth(samples: list[Sample]) -> Growth:
    """What changes after the warm-up."""
    warm = [taken for taken in samples if taken.step > WARM_UP]
    middle = (WARM_UP + STEPS) // 2
    halves = [[taken for taken in warm if (taken.step > middle) == is_second] for is_second in (False, True)]
    slopes = [np.polyfit([taken.step for taken in half], [taken.resident for taken in half], 1)[0] for half in halves]
    held = {
        name: tuple(int(np.median([getattr(taken, name) for taken in half])) for half in halves)
        for name in ("files", "threads", "children")
    }
    return Growth(len(warm), *(round(float(slope) * 1000, 2) for slope in slopes), **held)


def sample(step: int, pid: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    resident, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) for name in ("VmRSS", "Threads"))
    return Sample(step, resident / 1024, len(os.listdir(f"/proc/{pid}/fd")), threads, len(children(pid)))
