"""Runs a reader on a hostile input, and says what became of it."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from inputs import CANARY

from megatron_lpc.command_line import UserError
from megatron_lpc.data.input_errors import input_errors

SECONDS = 20
"""That an input may take on a busy machine; most take milliseconds."""
MEMORY = 6 * 2**30
"""Address space that an input may take besides what the process has."""
_MAX_LETTERS = 2000
OUTSIDE = "outside"
"""Folder beside that of the input, which nothing may read."""
_opened: list[str] = []


class Hang(BaseException):
    """An input takes too long."""


class Wrong(Exception):
    """An input was accepted, and should not have been, or with another value."""


@dataclass
class Tally:
    """Outcomes of one kind of input."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    """What went wrong, by its place -> the first input of it."""

    def line(self, kind: str) -> str:
        return f"{kind}: {sum(self.counts.values())} inputs, " + ", ".join(
            f"{count} {name}" for name, count in sorted(self.counts.items())
        )


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and f"/{OUTSIDE}/" in arguments[0]:
        _opened.append(arguments[0])


sys.addaudithook(_note_opened)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """With an end to the memory of this process, so that a bomb is a MemoryError and not the end of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run(read: Callable[[Path], Any], folder: Path, tally: Tally, described: Callable[[], str]) -> None:
    """Read the input in `folder` and count what became of it.

    Args:
        read: raises `Wrong` for what was accepted with a wrong value.
        described: the input, for the report of a finding.
    """
    before, current = _listing(folder), Path.cwd()
    temporary, tempfile.tempdir = tempfile.tempdir, str(folder.parent / "tmp")
    _opened.clear()
    os.chdir(folder)
    try:
        outcome = _outcome(read, folder)
    finally:
        os.chdir(current)
        tempfile.tempdir = temporary
    left = sorted(_listing(folder.parent / "tmp") | (_listing(folder) - before))
    if _opened:
        outcome = f"read outside: {_opened[0]}"
    elif any(CANARY in name for name in left):
        outcome = "ran code"
    elif left:
        outcome = f"left behind: {left[0]}"
    if outcome in ("accepted", "refused"):
        tally.counts[outcome] += 1
    else:
        tally.counts[outcome.partition(":")[0]] += 1
        tally.findings.setdefault(outcome, described())


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang


def _outcome(read: Callable[[Path], Any], folder: Path) -> str:
    handler = signal.signal(signal.SIGALRM, _stop)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), input_errors():
            read(folder)
        return "accepted"
    except UserError as error:
        return _of_message(str(error), folder)
    except Hang:
        return "hang: " + _place(sys.exc_info()[2])
    except Wrong as error:
        return f"wrong acceptance: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"trace: {type(error).__name__} at {_place(error.__traceback__)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _of_message(message: str, folder: Path) -> str:
    """`refused`, or what is wrong with the message."""
    if len(message) > _MAX_LETTERS:
        return f"long message: {message[:80]!r}"
    if "\n" in message or "\x1b" in message:
        return f"message of several lines: {message[:200]!r}"
    if not any(name in message for name in (str(folder), "--", "flag", "config.json")):
        return f"message without a file: {message[:200]!r}"
    return "refused"


def _place(trace: Any) -> str:
    """The deepest line of this project, and the deepest of all."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if "/megatron_lpc/" in frame.filename] or frames
    return " in ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (frames[-1], own[-1]))
