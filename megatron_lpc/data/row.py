"""A row of preference data with its place, and the error of a row that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_lpc.outside.messages import cleaned

MAX_ROW_BYTES = 8 * 2**20
"""Larger rows are refused. A tokenizer takes about 150 bytes for each byte of text, so one row
of 20 MB would take 3 GB; a pair that fills a context of 128k tokens is below 4 MB, escapes and repeated prompt
included."""

_REASON_LETTERS = 600

Position = tuple[int, int]
"""Where a reader is in a shard: lines or rows before it, and bytes before it (0 where rows are found by number)."""

START: Position = (0, 0)

Wanted = Callable[[], bool]
"""Is asked once for each row, in order, whether it is to be given; to read past a row is faster than to parse it."""


def every_row() -> bool:
    """All rows are wanted."""
    return True


class BadRow(ValueError):
    """A row that cannot be trained on: which (file, 1-based line or row), why, and what to do about it."""

    def __init__(self, file: str, line: int, reason: str, fix: str) -> None:
        reason = cleaned(reason, _REASON_LETTERS)
        super().__init__(f"{file}:{line}: {reason}. {fix}.")
        self.file = file
        self.line = line
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[type[BadRow], tuple[str, int, str, str]]:
        # Exceptions are pickled with the arguments of `super().__init__` unless told otherwise.
        return BadRow, (self.file, self.line, self.reason, self.fix)

    def to_json(self) -> str:
        """One line of JSON: {file, line, reason, fix}."""
        return json.dumps(vars(self), ensure_ascii=False)


@dataclass(frozen=True)
class Location:
    """Where a row stands."""

    file: str
    line: int
    """1-based line of JSON lines, 1-based row of any other source."""

    def bad_row(self, reason: str, fix: str) -> BadRow:
        """The error to raise for the row that stands here; `reason` and `fix` without their full stops."""
        return BadRow(self.file, self.line, reason, fix)

    def too_large(self, num_bytes: int) -> BadRow:
        """The error for a row of `num_bytes`, which are too many."""
        return self.bad_row(
            f"the row has {num_bytes:,} bytes, above the limit of {MAX_ROW_BYTES:,}",
            "Shorten it, or remove it",
        )


@dataclass(frozen=True)
class Row:
    """A line of JSON lines, or a row of a table."""

    location: Location
    values: dict[str, Any]
    """Column -> value."""


RowRead = tuple[Row | BadRow | None, Position]
"""A row, or None for one that was not wanted, and the position behind it. A row that cannot be used comes as the BadRow
to raise or to record, since only the caller knows which."""


class Shard(Protocol):
    """A part of a source that can be read by itself: a file, or a shard of a Hub data set."""

    def rows(self, position: Position = START, wanted: Wanted = every_row) -> Iterator[RowRead]:
        """Rows from `position` on.

        Raises:
            ValueError: the shard cannot be read any further.
        """
