"""One measurement, in a process of its own: `python -m benchmarks.training.measure NAME WORKLOAD ANSWER`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.ours import measure_alternating, measure_ours
from benchmarks.training.providers import ALTERNATING, Skipped
from benchmarks.training.trl import measure_trl
from benchmarks.training.workload import Workload
from megatron_lpc.command_line import UserError

ROOT = Path(__file__).resolve().parents[2]


def measure(work: Workload, name: str) -> dict[str, Any]:
    """Measure in this process: `seconds` and `peak_gb`, or `skipped` with the reason."""
    try:
        if name.endswith(ALTERNATING):
            return measure_alternating(work, name.removesuffix(ALTERNATING))
        if name.startswith("trl"):
            return measure_trl(work, name)
        return measure_ours(work, name)
    except Skipped as reason:
        return {"skipped": str(reason)}
    except torch.OutOfMemoryError:
        return {"skipped": "does not fit into the GPU's memory"}


class MeasurementFailed(UserError):
    """A provider ended with an error."""

    exit_code = 1


def measure_in_process(work: Workload, name: str) -> dict[str, Any]:
    """`measure`, in a new process.

    Raises:
        MeasurementFailed: the process failed; the message has the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A file, not standard output, which libraries write to as well.
        answer = Path(folder) / "answer.json"
        arguments = [name, json.dumps(asdict(work)), str(answer)]
        command = [sys.executable, "-m", "benchmarks.training.measure", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MeasurementFailed(f"{name} failed:\n{done.stderr[-4000:]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def main() -> None:
    name, work, answer = sys.argv[1:]
    result = measure(Workload(**json.loads(work)), name)
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
