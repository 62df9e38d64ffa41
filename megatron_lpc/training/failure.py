"""How the ranks of a run end when something fails: one of them says why."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_lpc.command_line import UserError, WriteFailed, is_first_rank

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""Errors of a file that no stack trace explains."""

_TOLD = "megatron_lpc/failure_is_told"
"""In the store of the process group once the first rank has said why."""
_PATIENCE = timedelta(seconds=5)
"""That a rank waits for it: once one rank has ended, the launcher soon ends all others, the one that speaks too."""

_LEFT_ALONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say to a rank when another one has ended."""


@contextmanager
def reports_failures() -> Iterator[None]:
    """An error ends the process, and one rank says why: the one that was first to fail.

    A `UserError`, or a disk that is full or cannot be written, is one line `error: …`; anything else keeps its stack
    trace. Each of the other ranks ends with one line at most. Ends with the `exit_code` of a `UserError`, else with 1.

    Collectives: none; the ranks count in the store of the process group, where there is one.
    """
    try:
        yield
    except KeyboardInterrupt:
        if _is_first_to_fail():
            print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    except (Exception, CheckpointException) as error:
        is_first = not _is_known_elsewhere(error) and _is_first_to_fail()
        if isinstance(error, OSError) and error.errno in _DISK and error.filename is not None:
            error = WriteFailed(f"{error.filename}: {error.strerror}")
        if isinstance(error, UserError):
            if is_first:
                print(f"error: {error}", file=sys.stderr, flush=True)
            _let_the_first_tell(is_first)
            raise SystemExit(error.exit_code) from error
        if is_first:
            traceback.print_exception(error)
        else:
            lines = str(error).splitlines() or [""]
            print(f"rank {_rank()} ends, as another rank has: {type(error).__name__}: {lines[0]}", file=sys.stderr)
        sys.stderr.flush()
        _let_the_first_tell(is_first)
        raise SystemExit(1) from error


def _is_known_elsewhere(error: BaseException) -> bool:
    """Whether another rank has the cause, or has ended without a word."""
    if isinstance(error, WriteFailed):
        return error.is_known_elsewhere
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LEFT_ALONE)


def _is_first_to_fail() -> bool:
    if not dist.is_initialized():
        return is_first_rank()
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set_timeout(timedelta(seconds=10))
        return store.add("megatron_lpc/failed_ranks", 1) == 1
    except Exception:  # The store is gone with the process that kept it.
        return is_first_rank()


def _let_the_first_tell(is_first: bool) -> None:
    """The first rank says that it has told; the others wait for it, as long as there is patience."""
    if not dist.is_initialized():
        return
    with suppress(Exception):  # The store is gone with the process that kept it.
        store = dist.distributed_c10d._get_default_store()
        if is_first:
            store.set(_TOLD, "")
        else:
            store.wait([_TOLD], _PATIENCE)


def _rank() -> str:
    return os.environ.get("RANK", "0")
