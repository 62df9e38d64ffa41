"""`--rank-log-dir`: what each rank prints, in a file of its own beside the terminal.

Output, errors, warnings and stack traces of a rank are in FOLDER/rank_00000.log, and of every step that it has done a
line with the time. After a hang the last lines say which rank is where.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from megatron_lpc.outside.messages import without_secrets


class _Tee:
    """A text stream that is written to a file as well; in all else it is the original stream."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream = stream
        self.file = file

    def write(self, text: str) -> int:
        self.file.write(without_secrets(text))
        return self.stream.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_rank_log(folder: str | None, rank: int) -> None:
    """Also append standard output and standard error of this rank to its file, from now on.

    Nothing happens when `folder` is None.
    """
    close_rank_log()
    if folder is None:
        return
    path = Path(folder) / f"rank_{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Line by line, so that the file is up to date when the process hangs or is killed.
    file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    sys.stdout, sys.stderr = _Tee(sys.stdout, file), _Tee(sys.stderr, file)


def close_rank_log() -> None:
    """Give standard output and standard error back; nothing when there is no log."""
    if isinstance(sys.stdout, _Tee):
        sys.stdout.file.close()
        sys.stdout = sys.stdout.stream
    if isinstance(sys.stderr, _Tee):
        sys.stderr = sys.stderr.stream


def log_step(iteration: int, metrics: Mapping[str, float]) -> None:
    """A line on a step that is done, only into this rank's file; nothing when there is no log."""
    if isinstance(sys.stdout, _Tee):
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        loss, seconds = metrics.get("loss"), metrics.get("step_seconds")
        sys.stdout.file.write(f"{now} step {iteration} done: loss {loss}, {seconds} s\n")
