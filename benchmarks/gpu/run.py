"""Runs a part under its limit, and records how it ended. A part that fails stops no other."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_GRACE = 10
"""Seconds between asking a part that exceeded its limit to end, and killing it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a part ended."""

    part: str
    result: str
    """`passed`, `failed` or `exceeded its limit`."""
    seconds: float
    limit: int
    command: str
    note: str
    """The last line of its output, unless it passed."""

    @property
    def passed(self) -> bool:
        return self.result == "passed"


def run(name: str, arguments: list[str], limit: int, results: Path) -> Record:
    """Run this Python with arguments, its output into `results`/NAME.log, and record the end in NAME.json.

    Raises OSError if the folder cannot be written.
    """
    log = results / f"{name}.log"
    command = [sys.executable, *arguments]
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        result = _wait(process, limit)
    record = Record(
        part=name,
        result=result,
        seconds=round(time.monotonic() - start, 1),
        limit=limit,
        command=shlex.join(["python", *arguments]),
        note="" if result == "passed" else _last_line(log),
    )
    write_record(record, results)
    return record


def write_record(record: Record, results: Path) -> None:
    """Into `results`/NAME.json, in place of an earlier one of the part."""
    (results / f"{record.part}.json").write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def read_records(results: Path, names: list[str]) -> list[Record]:
    """The records that a folder has of these parts, in their order."""
    files = [results / f"{name}.json" for name in names]
    return [Record(**json.loads(file.read_text(encoding="utf-8"))) for file in files if file.exists()]


def _environment() -> dict[str, str]:
    """This process's, with the project importable: it need not be installed."""
    folders = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def _wait(process: subprocess.Popen[bytes], limit: int) -> str:
    """How the process ended; at the limit it is ended, with all that it started."""
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return "exceeded its limit"
    except BaseException:
        _end(process)
        raise
    return "passed" if status == 0 else "failed"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it started, which may outlive it."""
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
