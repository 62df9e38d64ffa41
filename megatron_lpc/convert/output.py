"""The folder that a conversion writes: it has a temporary name until it is complete, and fits on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.files import replace_folder, replaced_folder


@contextmanager
def new_folder(path: Path, *, source: Path, nbytes: int, force: bool) -> Iterator[Path]:
    """A temporary folder to write into, which takes the name `path` when the block ends.

    An error in the block, or a killed process, leaves nothing at `path`, or what was there before.

    Args:
        path: final name of the folder.
        source: what is converted; it may not lie within `path`.
        nbytes: size of the tensors to be written.
        force: replace what is at `path`.

    Raises:
        ConversionError: something is at `path`, it holds the source, or the disk is too full.
    """
    path = path.absolute()
    partial = path.with_name(f".{path.name}.partial.tmp")
    replaced = replaced_folder(path)
    if source.resolve().is_relative_to(path.resolve()):
        raise ConversionError(f"--output {path}: holds the input {source}; choose another folder")
    if replaced.exists() and not path.exists():
        # An earlier conversion was killed between its last two moves.
        replaced.rename(path)
    if path.exists() and not force:
        raise ConversionError(f"--output {path}: exists; choose another folder, or replace it with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    _check_free_space(path, nbytes)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    shutil.rmtree(replace_folder(partial, path), ignore_errors=True)


def _check_free_space(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise ConversionError(f"--output {path}: needs {nbytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free")
