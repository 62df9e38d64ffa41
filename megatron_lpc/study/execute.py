"""Run what is not finished, several at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from megatron_lpc.command_line import UserError
from megatron_lpc.files import write_json
from megatron_lpc.study.plan import data_folder, filled
from megatron_lpc.study.planned_run import PlannedRun, read_saved
from megatron_lpc.study.run_files import ENDS_WITH_INPUT, LOG
from megatron_lpc.study.study_file import Study

_MADE = ".made"
"""Left in a folder of data once all its commands have ended: the commands."""


def data_commands(study: Study, output: Path, data: str) -> list[list[str]]:
    """Those that make a set of data: arguments of `python`."""
    places = {"data": data_folder(output, data), "output": output}
    return [filled(command, places) for command in study.data[data].commands]


def make_data(study: Study, output: Path, data: str) -> None:
    """Run the commands of a set of data, unless they have ended before.

    Raises:
        UserError: one fails, or the data were made by other commands.
    """
    folder, commands = data_folder(output, data), data_commands(study, output, data)
    made = folder / _MADE
    if made.exists():
        if read_saved(made, list[Any]) != commands:
            raise UserError(
                f"{study.file}: data.{data}: {folder} was made by other commands; remove it and the runs on it, or "
                "give another --output"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands:
        done = subprocess.run([sys.executable, *command], check=False)
        if done.returncode:
            raise UserError(f"{study.file}: data.{data}: `{' '.join(command)}` ended with {done.returncode}")
    write_json(made, commands)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that has ended, finished or not, and how far all are."""

    run: PlannedRun
    seconds: float
    """That it took."""
    number: int
    """Of the runs that have ended."""
    total: int
    seconds_left: float

    def __str__(self) -> str:
        result = "done" if self.run.is_finished() else f"FAILED, see {self.run.folder / LOG}"
        left = f"{self.seconds_left // 3600:.0f}:{self.seconds_left // 60 % 60:02.0f}:{self.seconds_left % 60:02.0f}"
        return f"[{self.number}/{self.total}] {self.run.name}: {result} in {self.seconds:.0f} s, {left} left"


def unfinished(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Those to do: of rows with equal options, the first."""
    by_folder: dict[Path, PlannedRun] = {}
    for run in runs:
        if not run.is_finished():
            by_folder.setdefault(run.folder, run)
    return list(by_folder.values())


def execute(runs: Sequence[PlannedRun], jobs: int) -> Generator[Ended, None, None]:
    """Run all that are not finished; gives each that ended, failed ones too.

    What a run that was cut off has left is removed first. Closing the iterator ends the runs.
    """
    left = unfinished(runs)
    began, number = time.monotonic(), 0
    running = _Running()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for part in _parts(left):
                futures = {pool.submit(_run, run, running): run for run in part}
                for future in as_completed(futures):
                    number += 1
                    to_go = (time.monotonic() - began) / number * (len(left) - number)
                    yield Ended(
                        run=futures[future],
                        seconds=future.result(),
                        number=number,
                        total=len(left),
                        seconds_left=to_go,
                    )
        finally:
            # Nothing is left here unless this process is being ended.
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()


def _parts(runs: Sequence[PlannedRun]) -> list[Sequence[PlannedRun]]:
    """Runs to start one part after the other: what fills a cache of hidden states for all others goes first."""
    filling = [run for run in runs if run.config is not None and run.config.training.cache_hidden_states is not None]
    firsts = list({run.data: run for run in reversed(filling)}.values())
    return [part for part in (firsts, [run for run in runs if run not in firsts]) if part]


class _Running:
    """The processes that run, of several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def wait_for(self, command: Sequence[str], log: Path) -> None:
        """Start a process and wait for its end; none once all are stopped.

        Its standard input is a pipe to which nothing is written: it ends when this process does, even by SIGKILL.
        """
        environment = {"OMP_NUM_THREADS": "1", **os.environ, ENDS_WITH_INPUT: "1"}
        with log.open("wb") as output:
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
                self._processes.add(process)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        with self._lock:
            self._processes.remove(process)

    def stop(self) -> None:
        """Kill all processes with what they have started, and start no more.

        SIGTERM would have them save what nobody resumes.
        """
        with self._lock:
            self._stopped = True
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _run(run: PlannedRun, running: _Running) -> float:
    """Seconds that it took; whether it worked is seen by what it left."""
    began = time.monotonic()
    if run.is_trained():
        for report in run.folder.glob("report*.json"):
            report.unlink()
    elif run.folder.exists():
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.keep_options()
    running.wait_for([sys.executable, *run.command], run.folder / LOG)
    return time.monotonic() - began
