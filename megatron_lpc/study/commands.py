"""The exact commands of a study, as a shell script."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_lpc.study.execute import data_commands
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.study_file import Study

_HEADER = """#!/usr/bin/env bash
# What `python -m megatron_lpc.study {study} --output {output}` runs, one after the other.
# `one_run` is `megatron_lpc.train` and then `megatron_lpc.evaluate` with the same flags, in one process.
set -euo pipefail
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-1}}"
"""


def script(study: Study, output: Path, runs: Sequence[PlannedRun]) -> str:
    """Commands of the data and of the runs, those of rows with equal options once."""
    lines = [_HEADER.format(study=study.file, output=output)]
    for data in dict.fromkeys(run.data for run in runs):
        lines += [f"# data: {data}", *(_line(command) for command in data_commands(study, output, data)), ""]
    for run in reversed({run.folder: run for run in reversed(runs)}.values()):
        lines += [f"# {run.name}", f"mkdir -p {shlex.quote(str(run.folder))}", _line(run.command), ""]
    return "\n".join(lines)


def _line(command: Iterable[str]) -> str:
    return shlex.join(["python", *command])
