"""Predicted and measured peaks of memory: `python -m benchmarks.plan [CASE …]`. Linux only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.plan.cases import CASES, Case
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import make_plan
from megatron_lpc.terminal import markdown_table

ROOT = Path(__file__).resolve().parents[2]
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc then gives freed tensors back to the system, as their sum is compared."""


def predicted(case: Case) -> list[int]:
    """Peak of each rank's memory that depends on its stage, in bytes."""
    plan = make_plan(case.config(), PlanOptions(world_size=case.world_size))
    ranks = case.world_size // plan.schedule.stages
    return [part.memory.peak for part in plan.stages for _ in range(part.stage.stages * ranks)]


def measured(name: str, case: Case) -> list[int]:
    """The same, measured."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.world_size}"]
        command = [sys.executable, *launch, "-m", "benchmarks.plan.measure", name, folder]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | _RETURN_MEMORY, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
        return [
            json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(case.world_size)
        ]


def rows(names: list[str]) -> Iterator[list[str]]:
    """Case, rank, predicted and measured peak in 10^6 bytes, and the error of the prediction."""
    for name in names:
        both = zip(predicted(CASES[name]), measured(name, CASES[name]), strict=True)
        for rank, (prediction, peak) in enumerate(both):
            yield [name, str(rank), f"{prediction / 1e6:.0f}", f"{peak / 1e6:.0f}", f"{prediction / peak - 1:+.1%}"]


def main() -> None:
    table = list(rows(sys.argv[1:] or list(CASES)))
    print(markdown_table(["run", "rank", "predicted MB", "measured MB", "error"], table), end="")


if __name__ == "__main__":
    main()
