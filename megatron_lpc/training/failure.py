"""How the ranks of a run end when something fails: one of them says why."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_lpc.command_line import UserError, WriteFailed, is_first_rank
from megatron_lpc.training import hang
from megatron_lpc.training.heartbeat import StoreIsSilent, ask_store, latest_beats, tell_failure

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors of a file that no stack trace explains."""

_TOLD = "megatron_lpc/failure_is_told"
"""In the store of the process group once the first rank has said why."""
_PATIENCE = 5
"""Seconds that a rank waits for it: once one rank has ended, the launcher soon ends all others, the one that speaks
too."""
_SEARCH_SECONDS = 25
"""That a rank looks for the one that left it: of another host it is known only when its heartbeat is missing."""

_LEFT_ALONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "remote process exited",
    "Broken pipe",
    "failed to recv",
)
"""What gloo, NCCL and the store say to a rank when another one has ended."""
_TIMED_OUT = ("Timed out waiting", "timed out", "timeout")
"""What they say when another one does not come."""


@contextmanager
def reports_failures() -> Iterator[None]:
    """An error ends the process, and one rank says why: the one that was first to fail.

    A `UserError`, or a disk that is full or cannot be written, is one line `error: …`, as is a rank that the others
    wait for; anything else keeps its stack trace. Each of the other ranks ends with one line at most. Ends with the
    `exit_code` of a `UserError`, else with 1.

    Collectives: none; the ranks count in the store of the process group, where there is one.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell_failure()
        is_first = _is_first_to_fail()
        if is_first:
            print("interrupted", file=sys.stderr, flush=True)
        _let_the_first_tell(is_first)
        raise SystemExit(128 + signal.SIGINT) from None
    except (Exception, CheckpointException) as error:
        tell_failure(error)
        if isinstance(error, OSError) and error.errno in _DISK and error.filename is not None:
            error = WriteFailed(f"{error.filename}: {error.strerror}")
        cause = _cause_elsewhere(error)
        is_first = (cause is not None or not _is_known_elsewhere(error)) and _is_first_to_fail()
        if is_first and cause is None and not isinstance(error, UserError):
            traceback.print_exception(error)
        elif is_first:
            print(f"error: {cause or error}", file=sys.stderr)
        sys.stderr.flush()
        is_told = _let_the_first_tell(is_first)
        if not is_told and not isinstance(error, UserError):
            lines = str(error).splitlines() or [""]
            print(f"rank {_rank()} ends, as another rank has: {type(error).__name__}: {lines[0]}", file=sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, UserError) else 1) from error


def end_waiting() -> None:
    """End this process if another rank is stopped, has ended or is silent, and say which, unless another one does.

    For a thread, while the main thread waits for that rank.
    """
    found = hang.unwell(latest_beats(), time.time())
    if found is None:
        return
    tell_failure()
    is_first = _is_first_to_fail()
    if is_first:
        print(f"error: {found.sentence()}", file=sys.stderr)
    _let_the_first_tell(is_first)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # The main thread waits in a call that nothing ends.


def _cause_elsewhere(error: BaseException) -> str | None:
    """Which rank is to blame for the error of a collective; None where this rank is, or another one says so."""
    if not isinstance(error, RuntimeError):
        return None
    if _says(error, _TIMED_OUT):
        beats = latest_beats()
        found = hang.unwell(beats, time.time()) or hang.behind(beats)
        return found.sentence() if found else None
    end = time.monotonic() + _SEARCH_SECONDS
    while _says(error, _LEFT_ALONE) and time.monotonic() < end and (beats := latest_beats()) and not _is_told():
        if found := hang.unwell(beats, time.time()):
            return found.sentence()
        time.sleep(1)
    return None


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def _is_known_elsewhere(error: BaseException) -> bool:
    """Whether another rank has the cause, or has ended without a word."""
    if isinstance(error, WriteFailed):
        return error.is_known_elsewhere
    return isinstance(error, RuntimeError) and _says(error, _LEFT_ALONE)


def _is_first_to_fail() -> bool:
    if not dist.is_initialized():
        return is_first_rank()
    try:
        return ask_store(lambda store: int(store.add("megatron_lpc/failed_ranks", 1))) == 1
    except StoreIsSilent:  # With rank 0, which kept it: one rank per host speaks.
        node, local_rank = (os.environ.get(name, "0") for name in ("GROUP_RANK", "LOCAL_RANK"))
        return is_first_rank() or local_rank == ("1" if node == "0" else "0")


def _let_the_first_tell(is_first: bool) -> bool:
    """The first rank says that it has told; the others wait for it, as long as there is patience.

    Returns:
        Whether it is told.
    """
    if not dist.is_initialized():
        return is_first
    with suppress(StoreIsSilent):
        if is_first:
            ask_store(lambda store: store.set(_TOLD, ""))
        else:
            ask_store(lambda store: store.wait([_TOLD], timedelta(seconds=_PATIENCE)), _PATIENCE + 1)
        return True
    return is_first


def _is_told() -> bool:
    try:
        return ask_store(lambda store: bool(store.check([_TOLD])))
    except StoreIsSilent:
        return False


def _rank() -> str:
    return os.environ.get("RANK", "0")
