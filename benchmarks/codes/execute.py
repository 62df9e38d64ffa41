"""Run what is not finished, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import IO

from benchmarks.codes.plan import LOG, PlannedRun, data_folder
from benchmarks.codes.sweep import Sweep
from megatron_lpc.command_line import UserError

_MADE = ".made"
"""Left in a folder of data once all its commands have ended."""


def make_data(sweep: Sweep, output: Path, data: str) -> None:
    """Run the commands of a set of data, unless they have ended before.

    Raises:
        UserError: one fails.
    """
    folder = data_folder(output, data)
    if (folder / _MADE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for command in sweep.data[data]:
        done = subprocess.run([sys.executable, *command.replace("{data}", str(folder)).split()], check=False)
        if done.returncode:
            raise UserError(f"data {data}: `{command}` ended with {done.returncode}")
    (folder / _MADE).touch()


def execute(runs: Sequence[PlannedRun], jobs: int) -> Iterator[PlannedRun]:
    """Run all that are not finished, and say how far it is after each; gives each run that ended, failed ones too.

    What a run that was cut off has left is removed first. Ending this process ends the runs.
    """
    by_folder: dict[Path, PlannedRun] = {}
    for run in runs:
        if not run.is_finished():
            by_folder.setdefault(run.folder, run)
    left = list(by_folder.values())
    print(f"{len(left)} runs to do, {jobs} at a time", flush=True)
    began, ended = time.monotonic(), 0
    running = _Running()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for part in _parts(left):
                futures: dict[Future[float], PlannedRun] = {pool.submit(_run, run, running): run for run in part}
                for future in as_completed(futures):
                    run, seconds = futures[future], future.result()
                    ended += 1
                    to_go = timedelta(seconds=round((time.monotonic() - began) / ended * (len(left) - ended)))
                    result = "done" if run.is_finished() else f"FAILED, see {run.folder / LOG}"
                    print(f"[{ended}/{len(left)}] {run.name}: {result} in {seconds:.0f} s, {to_go} left", flush=True)
                    yield run
        finally:
            # Nothing is left here unless this process is being ended.
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()


def _parts(runs: Sequence[PlannedRun]) -> list[Sequence[PlannedRun]]:
    """Runs to start one part after the other: what fills a cache of hidden states for all others goes first."""
    firsts = list({run.data: run for run in reversed(runs)}.values())
    if all(run.config.training.cache_hidden_states is None for run in runs):
        return [runs]
    return [firsts, [run for run in runs if run not in firsts]]


class _Running:
    """The processes that run, of several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def wait_for(self, command: list[str], log: IO[bytes], environment: dict[str, str]) -> None:
        """Start a process and wait for its end; none once all are stopped."""
        with self._lock:
            if self._stopped:
                return
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            self._processes.add(process)
        process.wait()
        with self._lock:
            self._processes.remove(process)

    def stop(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def _run(run: PlannedRun, running: _Running) -> float:
    """Seconds that it took; whether it worked is seen by what it left."""
    began = time.monotonic()
    if run.folder.exists():
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True)
    run.keep_options()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with (run.folder / LOG).open("wb") as log:
        running.wait_for([sys.executable, *run.command()], log, environment)
    return time.monotonic() - began
