"""Files and folders that appear whole: written under a temporary name beside the final one, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the name `path` when the block ends.

    The folder of `path` is made when it is missing. An error in the block removes the temporary file and leaves
    what was at `path`. Until it is whole, nobody else can read or write the file, and it is none that another user has
    put there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(new: Path, path: Path) -> Path:
    """Rename the folder `new` to `path`, beside it. A folder that is there is moved aside first.

    Returns:
        Where the replaced folder lies now, if there was one: `.NAME.replaced.tmp`, for the caller to delete.
    """
    replaced = replaced_folder(path)
    if path.exists():
        path.rename(replaced)
    new.rename(path)
    return replaced


def replaced_folder(path: Path) -> Path:
    """Where `replace_folder` puts what was at `path`."""
    return path.with_name(f".{path.name}.replaced.tmp")


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file of text: UTF-8, line feeds as they are."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: object) -> None:
    """Write a whole file of JSON, indented, with a line feed at its end."""
    write_text(path, json.dumps(value, indent=2) + "\n")
