"""Rows of preference data from files and the Hugging Face Hub, each with its location."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")


class BadRow(ValueError):
    """A row that cannot be trained on: which (file, 1-based line or row), why, and what to do about it."""

    def __init__(self, file: str, line: int, reason: str, fix: str) -> None:
        super().__init__(f"{file}:{line}: {reason}. {fix}.")
        self.file = file
        self.line = line
        self.reason = reason
        self.fix = fix

    def to_json(self) -> str:
        """One line of JSON: {file, line, reason, fix}."""
        return json.dumps(vars(self), ensure_ascii=False)


@dataclass(frozen=True)
class Location:
    """Where a row stands."""

    file: str
    line: int
    """1-based line of a JSONL file, 1-based row of any other source."""

    def bad_row(self, reason: str, fix: str) -> BadRow:
        """The error to raise for the row that stands here; `reason` and `fix` without their full stops."""
        return BadRow(self.file, self.line, reason, fix)


@dataclass(frozen=True)
class Row:
    """A line of a JSONL file, or a row of a table."""

    location: Location
    values: dict[str, Any]
    """Column -> value."""


def read_rows(source: str) -> Iterator[Row | BadRow]:
    """Rows of `source`, a file or a Hub name (`owner/name` or `owner/name:split`; split `train` by default), in order.

    A line that is no JSON object comes as the BadRow to raise or to record, since only the caller knows which.
    Blank lines of a JSONL file hold no row.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source as a whole cannot be read.
    """
    kind = _kind(source)
    if kind == "hub":
        yield from _located(source, _load_hub(source))
        return
    try:
        yield from _read_jsonl(source) if kind == "jsonl" else _located(source, _load_file(source, kind))
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{source}: cannot be read as {kind} ({error}). Check the file, or write it again.") from error


def identity(source: str) -> str:
    """Names the content of `source`: the SHA-256 of a file's bytes, or the `datasets` fingerprint of a Hub data set.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it is no data file, or cannot be loaded from the Hub.
    """
    if _kind(source) == "hub":
        return f"hub:{_load_hub(source)._fingerprint}"
    with open(source, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def open_stream(source: str, dp_rank: int = 0, dp_size: int = 1) -> Any:
    """One data parallel rank's share of `source` as a `datasets.IterableDataset`, of which nothing is read yet.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it is no data file, or cannot be loaded from the Hub.
    """
    from datasets.distributed import split_dataset_by_node

    kind = _kind(source)
    if kind == "hub":
        stream = _load_hub(source, streaming=True)
    else:
        stream = _load_file(source, "json" if kind == "jsonl" else kind)
    return split_dataset_by_node(stream, dp_rank, dp_size) if dp_size > 1 else stream


def _kind(source: str) -> str:
    """A value of FORMATS, or "hub"."""
    path = Path(source)
    suffix = next((suffix for suffix in FORMATS if path.name.endswith(suffix)), None)
    if path.is_file() and suffix:
        return FORMATS[suffix]
    if not path.exists() and not suffix and _HUB_NAME.fullmatch(source):
        return "hub"
    known = f"Give a {', '.join(FORMATS)} file or a Hub name (owner/name or owner/name:split)."
    if path.is_dir():
        raise ValueError(f"{source}: a folder, not a data file. {known}")
    if path.exists():
        raise ValueError(f"{source}: unknown kind of data file. {known}")
    raise FileNotFoundError(f"{source}: no such data file. {known}")


def _read_jsonl(source: str) -> Iterator[Row | BadRow]:
    # Not through `datasets`: its JSON reader names neither the broken line nor, under gzip, the file.
    with gzip.open(source, "rb") if source.endswith(".gz") else open(source, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(Location(source, number), line)


def _parse_line(location: Location, line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line)
    except ValueError as error:
        return location.bad_row(f"not valid JSON ({error})", "Write one JSON object per line, in UTF-8")
    if not isinstance(values, dict):
        return location.bad_row(f"a JSON {type(values).__name__}, not an object", "Write one JSON object per line")
    return Row(location, values)


def _located(source: str, table: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, values in enumerate(table, start=1):
        yield Row(Location(source, number), values)


def _load_file(source: str, kind: str) -> Any:
    from datasets import load_dataset  # slow to import, and a run with a cache has no need of it

    return load_dataset(kind, data_files=source, split="train", streaming=True)


def _load_hub(source: str, streaming: bool = False) -> Any:
    from datasets import load_dataset

    name, _, split = source.partition(":")
    try:
        return load_dataset(name, split=split or "train", streaming=streaming)
    except Exception as error:  # the Hub client raises anything from ConnectionError to its own kinds
        raise ValueError(
            f"{source}: cannot be loaded from the Hub ({error}). Check name, split and network, or give a file."
        ) from error
