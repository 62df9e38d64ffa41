"""Bytes and texts of regular files, of bounded size; and names in files, which lead to files beside them only."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from megatron_lpc.outside.messages import Malformed, brief, reason
from megatron_lpc.outside.typed import is_text

MAX_BYTES = 32 * 2**20
"""Of a file that is read whole."""
_NAME = re.compile(r"[^/\\]+")


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a file.

    Raises:
        Malformed: it cannot be read, is no regular file (a pipe would never end), or is larger.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Malformed(f"{path}: is no regular file")
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        if isinstance(error, Malformed):
            raise
        said = getattr(error, "strerror", None) or reason(error)
        raise Malformed(f"{path}: cannot be read ({said})") from error
    if len(content) > max_bytes:
        raise Malformed(f"{path}: has {status.st_size:,} bytes, above the limit of {max_bytes:,}")
    return content


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
        Malformed: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"{path}: cannot be read (not a text in UTF-8, at byte {error.start})") from error


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def inside(folder: Path, name: object, what: str) -> Path:
    """The file of a folder that an index names.

    Links are followed: the Hub's local copies consist of them. The name itself leads nowhere else.

    Args:
        what: the index, for the message.

    Raises:
        Malformed: it is no name, or one that leads out of the folder.
    """
    if not isinstance(name, str) or not name or not is_text(name):
        raise Malformed(f"{what}: names a file {brief(name)}, which is no name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise Malformed(f"{what}: names {brief(name)}, which leads out of its folder; nothing there is read")
    return folder / path


def is_plain_name(name: object) -> bool:
    """Whether a value is the name of a file or folder without a way to it."""
    return isinstance(name, str) and is_text(name) and name not in (".", "..") and bool(_NAME.fullmatch(name))
