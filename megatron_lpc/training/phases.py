"""What this rank is doing: the phase that its main thread has told, and the function in which it is."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STEP = "forward and backward"
_DIRECTIONS = {"forward_step": "forward", "backward_step": "backward"}
"""Functions of megatron-core's pipeline schedules -> which half of a step they are."""
_WRAPPERS = ("wrapper", "inner", "_fn", "decorate_context", "__call__", "_call_impl", "_wrapped_call_impl")
"""Functions that say nothing about what is done."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The line of a rank."""

    rank: int
    host: str
    processes: str
    """Names the space of process numbers in which `pid` has a meaning."""
    pid: int
    step: int
    """Steps done."""
    phase: str
    place: str
    """Innermost function of the main thread: the collective in which it waits, for instance."""
    phases: int
    """That it has been in until now: the same on all ranks when they are equally far."""
    time: float
    """When it was written, by the clock of its host."""
    speaks: bool
    """It has ended, or failed with an error that it reports itself."""


class _Doing:
    """What the main thread of this process says of itself."""

    step = 0
    phase = "start-up"
    phases = 0
    failed_in: list[str] | None = None
    """Functions, innermost first, in which it has failed; empty where it has come to its end."""


def begin() -> None:
    """A run begins in this process."""
    _Doing.step, _Doing.phase, _Doing.phases, _Doing.failed_in = 0, "start-up", 0, None


def end(error: BaseException | None = None) -> None:
    """This rank has come to its end, or has failed and says why: it is not the one that others wait for."""
    functions = [frame.name for frame in traceback.extract_tb(error.__traceback__)] if error else []
    _Doing.failed_in = functions[::-1]


def now_doing(phase: str) -> None:
    """The main thread begins a phase of the run."""
    _Doing.phase = phase
    _Doing.phases += 1


@contextmanager
def doing(phase: str) -> Iterator[None]:
    """A phase of the run; after it the phase before goes on. An error in it leaves it as it is, to be reported."""
    before = _Doing.phase
    now_doing(phase)
    yield
    now_doing(before)


def steps_done(step: int) -> None:
    """So many steps are done."""
    _Doing.step = step


def count() -> int:
    """Of the phases until now."""
    return _Doing.phases


def own_beat() -> Beat:
    """The line of this rank, now."""
    functions = _functions() if _Doing.failed_in is None else _Doing.failed_in
    place = next((name for name in functions if name not in _WRAPPERS and not name.startswith("<")), "")
    direction = next((_DIRECTIONS[name] for name in functions if name in _DIRECTIONS), STEP)
    return Beat(
        rank=int(os.environ.get("RANK", "0")),
        host=socket.gethostname(),
        processes=space_of_processes(),
        pid=os.getpid(),
        step=_Doing.step,
        phase=direction if _Doing.phase == STEP else _Doing.phase,
        place=place,
        phases=_Doing.phases,
        time=time.time(),
        speaks=_Doing.failed_in is not None,
    )


@cache
def space_of_processes() -> str:
    """Names the kernel and the container of this process, which its host name alone need not do."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # A system that is no Linux, or only looks like it.
        return f"{socket.gethostname()} {os.getpid()}"


def _functions() -> list[str]:
    """Functions of the main thread, innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return [function.f_code.co_name for function, _ in traceback.walk_stack(frame)] if frame else []
