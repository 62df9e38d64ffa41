"""Checksums of the files of a checkpoint, in its `integrity.json`.

The form is that of megatron-core 0.19: `{"algorithm": NAME, "files": {FILE: HEX DIGEST}}`, of all files but this one.
megatron-core writes SHA-256, which is read here too. Written is XXH3 of 128 bits: it finds damage, not forgery, and it
takes a thirteenth of the time (docs/checkpoints.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from torch.serialization import get_crc32_options, set_crc32_options

from megatron_lpc.config import ConfigError
from megatron_lpc.files import write_json
from megatron_lpc.outside.files import is_plain_name
from megatron_lpc.outside.json_text import read_object
from megatron_lpc.outside.messages import Malformed, brief

INTEGRITY = "integrity.json"
_WRITTEN = "xxh3_128"
_ALGORITHMS: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
_THREADS = 4
"""Files that a rank reads at a time."""


@dataclass(frozen=True)
class Manifest:
    """What `integrity.json` says."""

    algorithm: str
    files: Mapping[str, str]
    """Name -> hexadecimal digest."""


def new_checksum() -> Any:
    """A checksum to be updated, as those of `hashlib`; its `hexdigest()` is what a manifest holds."""
    return _ALGORITHMS[_WRITTEN]()


def checksums(files: Iterable[Path], algorithm: str = _WRITTEN) -> dict[str, str]:
    """Name of each file -> its checksum, of several files at a time.

    Raises:
        OSError: a file cannot be read.
    """

    def checksum(file: Path) -> str:
        with file.open("rb") as stream:
            return str(hashlib.file_digest(stream, _ALGORITHMS[algorithm]).hexdigest())

    files = list(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((file.name for file in files), pool.map(checksum, files), strict=True))


def write_manifest(folder: Path, known: Mapping[str, str]) -> None:
    """Write the checksums of all files of a checkpoint that is complete. For one process only.

    Args:
        known: checksums by name, computed by those who wrote the files; the other files are read.
    """
    others = [file for file in folder.iterdir() if file.is_file() and file.name not in {INTEGRITY, *known}]
    files = {**known, **checksums(others)}
    write_json(folder / INTEGRITY, {"algorithm": _WRITTEN, "files": dict(sorted(files.items()))})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint; None where it has none.

    Raises:
        ConfigError: it cannot be read, or has another form.
    """
    path = folder / INTEGRITY
    if not path.exists():
        return None
    try:
        content = read_object(path, {"algorithm": str, "files": dict[str, str]})
    except Malformed as error:
        raise ConfigError(f"{path}: is damaged, for it is no list of checksums ({error})") from error
    manifest = Manifest(content["algorithm"], content["files"])
    if manifest.algorithm not in _ALGORITHMS:
        raise ConfigError(f"{path}: checksums of the kind {manifest.algorithm!r} are not known")
    elsewhere = [name for name in manifest.files if not is_plain_name(name)]
    if elsewhere:
        raise ConfigError(f"{path}: names {brief(elsewhere[0])}, which is no file of its folder")
    return manifest


def damaged_files(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """A clause for each of these files that is not as it was written: `NAME is missing`."""
    problems = []
    present = []
    for name in names:
        if (folder / name).is_file():
            present.append(folder / name)
        else:
            problems.append(f"{name} is missing")
    try:
        found = checksums(present, manifest.algorithm)
    except OSError as error:
        return [*problems, f"{Path(error.filename).name} cannot be read ({error.strerror})"]
    damaged = [name for name, digest in found.items() if digest != manifest.files[name]]
    return [*problems, *(f"{name} is damaged (its checksum differs)" for name in damaged)]


@contextmanager
def without_crc32() -> Iterator[None]:
    """torch writes no CRC-32 in this thread: it takes as long as writing a tensor, and torch never reads it."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
