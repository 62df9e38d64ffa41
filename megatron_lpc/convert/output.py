"""The folder that a conversion writes: checked for room, under a temporary name until it is complete, with a bar that shows GB/s."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from megatron_lpc.convert.errors import ConversionError


@contextmanager
def new_folder(path: Path, *, source: Path, nbytes: int, force: bool) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end; an error or a kill leaves none of that name, or the old one as it was.

    Args:
        source: what is converted.
        nbytes: of the tensors to be written.
        force: replace what is there.

    Raises:
        ConversionError: something is there, is the source itself, or the disk is too full.
    """
    path = path.absolute()
    if source.resolve().is_relative_to(path.resolve()):
        raise ConversionError(f"--output {path}: holds the input {source}; choose another folder")
    partial, replaced = (path.with_name(f".{path.name}.{kind}.tmp") for kind in ("partial", "replaced"))
    if replaced.exists() and not path.exists():
        replaced.rename(path)  # A conversion was killed between its last two moves.
    if path.exists() and not force:
        raise ConversionError(f"--output {path}: exists; choose another folder, or replace it with --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise ConversionError(f"--output {path}: needs {nbytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def transfer_bar(title: str, nbytes: int) -> Iterator[Progress]:
    """A bar on standard error; move it on by `progress.advance(progress.task_ids[0], bytes)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        progress.add_task(title, total=nbytes)
        yield progress
