"""Rows of preference data from files, folders and the Hugging Face Hub, each with its location."""

from __future__ import annotations

import glob
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException

from megatron_lpc.data import hub
from megatron_lpc.data.folder import files_of_folder
from megatron_lpc.data.json_rows import read_json
from megatron_lpc.data.row import START, BadRow, Location, Position, Row, RowRead, Shard, Wanted, every_row
from megatron_lpc.data.table_rows import read_arrow, read_parquet
from megatron_lpc.outside.messages import reason
from megatron_lpc.outside.typed import is_text

__all__ = ["FORMATS", "BadRow", "Location", "Row", "Shard", "identity", "open_shards", "read_rows"]

_Reader = Callable[[str, Position, Wanted], Iterator[RowRead]]

FORMATS: dict[str, tuple[str, _Reader]] = {
    **{f".{name}{packed}": ("JSON", read_json) for name in ("jsonl", "json") for packed in ("", ".gz", ".zst")},
    ".parquet": ("Parquet", read_parquet),
    ".arrow": ("Arrow", read_arrow),
}
"""Ending of a file's name -> the format and its reader."""

_KNOWN = (
    f"Give files ({', '.join(FORMATS)}), a folder or a pattern of them, or a Hub name "
    "(owner/name, owner/name:split or owner/name#configuration:split)."
)


@dataclass(frozen=True)
class FileShard:
    """A file."""

    path: str

    def rows(self, position: Position = START, wanted: Wanted = every_row) -> Iterator[RowRead]:
        """As `Shard.rows`."""
        kind, read = FORMATS[_ending(self.path)]
        number = position[0]
        try:
            for row, behind in read(self.path, position, wanted):
                number = behind[0]
                yield row, behind
        except (OSError, EOFError, ValueError, MemoryError, zlib.error, ArrowException) as error:
            place = f" behind row {number}" if number else ""
            raise ValueError(
                f"{self.path}: cannot be read as {kind}{place} ({reason(error)}). Check the file, or write it again."
            ) from error


def read_rows(source: str, wanted: Wanted = every_row) -> Iterator[Row | BadRow]:
    """The wanted rows of `source`, in order: a file, a pattern of files, a folder or a Hub name, as in docs/data.md.

    A row that cannot be used comes as the BadRow to raise or to record, since only the caller knows which.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source as a whole cannot be read.
    """
    for shard in open_shards(source):
        for row, _ in shard.rows(wanted=wanted):
            if row is not None:
                yield row


def open_shards(source: str, *, streaming: bool = False) -> Sequence[Shard]:
    """The parts of `source`, each readable by itself; all of them, one after the other, are its rows.

    Args:
        streaming: leave a data set of the Hub where it is, and give the files of it one by one.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it is no data file, or cannot be loaded from the Hub.
    """
    files = _files(source)
    return hub.open_hub(source, streaming=streaming) if files is None else [FileShard(str(file)) for file in files]


def identity(source: str) -> str:
    """Names the content of `source`: the SHA-256 of its files' bytes, or the `datasets` fingerprint of a Hub data set.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it is no data file, or cannot be loaded from the Hub.
    """
    files = _files(source)
    if files is None:
        return f"hub:{hub.hub_identity(source)}"
    digests = []
    for path in files:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return f"sha256:{'+'.join(digests)}"


def _files(source: str) -> list[Path] | None:
    """The files that `source` names, or None for a name of the Hub."""
    if not is_text(source):
        raise FileNotFoundError(f"{source}: cannot be the name of a file. {_KNOWN}")
    path = Path(source)
    name, _, splits = source.partition(":")
    if path.is_file():
        files = [path]
    elif Path(name).is_dir():
        found = [file for split in splits.split("+") for file in files_of_folder(Path(name), split or None)]
        files = [file for file in found if _ending(file.name)]
    elif glob.has_magic(name):
        files = sorted(Path(match) for match in glob.glob(source, recursive=True) if Path(match).is_file())
    elif not _ending(name) and hub.NAME.fullmatch(source):
        return None
    else:
        files = []
    if not files:
        raise FileNotFoundError(f"{source}: no such data files. {_KNOWN}")
    for file in files:
        if not _ending(file.name):
            raise ValueError(f"{file}: unknown kind of data file. {_KNOWN}")
    return files


def _ending(name: str) -> str:
    """The key of FORMATS in which `name` ends, or nothing."""
    return next((ending for ending in FORMATS if name.endswith(ending)), "")
