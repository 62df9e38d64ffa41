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
MOST_MB = 4
"""Megabytes that the resident memory may grow over 1,000 steps: pages that are touched once, late."""
CASES = {
    "sync": [],
    "async": ["--async-save"],
    "streaming": ["--async-save", "--streaming", "--shuffle-buffer-size", "16", "--tensorboard"],
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

    for rank, samples in enumerate(of_ranks):
        warm = [taken for taken in samples if taken.step > WARM_UP]
        steps = np.array([taken.step for taken in warm])
        slope = np.polyfit(steps, [taken.resident for taken in warm], 1)[0] * 1000
        middle = int(np.median(steps))
        halves = [[taken for taken in warm if (taken.step > middle) == is_second] for is_second in (False, True)]
        most = {
            name: [max(getattr(taken, name) for taken in half) for half in halves]
            for name in ("resident", "files", "threads", "children")
        }
        print(f"{case}, rank {rank}: {len(warm)} samples; {slope:+.2f} MB per 1,000 steps; most in each half: {most}")
        assert slope < MOST_MB
        assert all(most[name][1] <= most[name][0] for name in ("files", "threads", "children")), most


def sample(step: int, pid: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    resident, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1]) for name in ("VmRSS", "Threads"))
    return Sample(step, resident / 1024, len(os.listdir(f"/proc/{pid}/fd")), threads, len(children(pid)))
