"""One run at a time in the folder of `--save`.

Rank 0 holds the lock of the operating system (flock) on SAVE/.lock, and writes into that file who it is. The system
frees it when the last process of the run is gone, those that write an asynchronous save included, however it ended: so
there is no lock of a dead run. Between hosts it works where the file system has such locks for all of them: NFS from
version 4 on, Lustre mounted with `flock`, GPFS, CephFS. On one that has none, the run says so and goes on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_lpc.command_line import warn
from megatron_lpc.config import ConfigError
from megatron_lpc.training.first_rank import from_first_rank

LOCK = ".lock"
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def only_run_in(save: str | None) -> Iterator[None]:
    """Hold the folder of `--save` against other runs, which rank 0 does for all; nothing where it is unset.

    Collectives: none; the other ranks wait for rank 0.

    Raises:
        ConfigError: on all ranks alike; another run holds it, or it cannot be written. Nothing has then been written.
    """
    if save is None:
        yield
        return
    folder = Path(save)
    held: list[int] = []

    def take() -> str:
        held.append(_lock(folder))
        return ""

    from_first_rank(take)
    try:
        yield
    finally:
        for file in held:
            _unlock(folder, file)


def _lock(folder: Path) -> int:
    """The open lock file. A folder that is missing is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"--save {folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            warn(f"--save {folder}: its file system has no locks, so another run in this folder would not be noticed")
        else:
            holder = os.pread(file, 4096, 0)
            os.close(file)
            raise ConfigError(
                f"--save {folder}: is in use by another run ({_described(holder)}); wait until it has ended, or choose "
                "another --save"
            ) from error
    content = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(content).encode(), 0)
    except OSError as error:
        os.close(file)
        raise ConfigError(f"--save {folder}: cannot be written ({error.strerror}); choose another folder") from error
    return file


def _unlock(folder: Path, file: int) -> None:
    """Free the folder; one in which nothing was written is removed."""
    with suppress(OSError):
        os.ftruncate(file, 0)
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()
    os.close(file)


def _described(holder: bytes) -> str:
    try:
        content = json.loads(holder)
        return f"process {content['pid']} on {content['host']}, since {content['started']}"
    except (ValueError, TypeError, KeyError):
        return "which has not said who it is"
