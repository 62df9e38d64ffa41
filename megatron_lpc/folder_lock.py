"""One run at a time in a folder, that of `--save`.

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
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import UserError, WriteFailed, warn
from megatron_lpc.outside.json_text import parse_json
from megatron_lpc.outside.typed import check

LOCK = ".lock"
_HOLDER = {"host": str, "pid": int, "started": str}
_PATIENCE = 10.0
"""Seconds to wait for the processes of a dead run that write an asynchronous save."""
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class FolderLock:
    """The lock of a folder, held from now on. A folder that is missing is made.

    Raises:
        UserError: another run holds it.
        WriteFailed: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = _lock(folder)

    def release(self) -> None:
        """Free the folder; one in which nothing was written is removed."""
        with suppress(OSError):
            os.ftruncate(self._file, 0)
            if [path.name for path in self._folder.iterdir()] == [LOCK]:
                (self._folder / LOCK).unlink()
                self._folder.rmdir()
        os.close(self._file)


def _lock(folder: Path) -> int:
    """The open lock file. A folder that is missing is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WriteFailed.of(f"--save {folder}", error) from error
    if not _acquire(file, folder):
        holder = _holder(file)
        os.close(file)
        who = "process {pid} on {host}, since {started}".format(**holder) if holder else "which has not said who it is"
        raise UserError(
            f"--save {folder}: is in use by another run ({who}); wait until it has ended, or choose another --save"
        )
    content = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(content).encode(), 0)
    except OSError as error:
        os.close(file)
        raise WriteFailed.of(f"--save {folder}", error) from error
    return file


def _acquire(file: int, folder: Path) -> bool:
    """Whether the lock is had now. What a dead run has still writing is waited for."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                warn(f"--save {folder}: its file system has no locks, so another run there would not be noticed")
                return True
            if time.monotonic() > end or not _is_dead(_holder(file)):
                return False
            time.sleep(0.2)
        else:
            return True


def _holder(file: int) -> dict[str, Any]:
    """What the run that holds the lock has written; empty where that cannot be read."""
    try:
        content = parse_json(os.pread(file, 4096, 0).decode())
        check(content, _HOLDER, LOCK)
    except (OSError, ValueError):
        return {}
    return {name: content[name] for name in _HOLDER}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it is known that this process has ended."""
    return holder.get("host") == socket.gethostname() and not Path(f"/proc/{holder['pid']}").exists()
