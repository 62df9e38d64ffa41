"""Chunks of rows, and what they become: record batches of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import count, islice

import pyarrow as pa

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.dataset import record_batch
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Row, read_rows
from megatron_lpc.data.tokenizer import Tokenizer

ROWS_PER_CHUNK = 1024
"""What a process takes at a time. Less than that is never worth starting one."""


@dataclass(frozen=True)
class RowChunks:
    """The rows of files and Hub names, chunk by chunk, for every process to read by itself."""

    sources: tuple[str, ...]
    first: int = 0
    """Chunks before this one are left out."""
    step: int = 1
    """From the first on, every so many chunks."""
    rows_per_chunk: int = ROWS_PER_CHUNK

    def __iter__(self) -> Iterator[list[Row | BadRow]]:
        """Raises what `read_rows` raises."""
        number = count(-self.first * self.rows_per_chunk)

        def is_own() -> bool:
            chunk = next(number) // self.rows_per_chunk
            return chunk >= 0 and chunk % self.step == 0

        rows = (row for source in self.sources for row in read_rows(source, is_own))
        return iter(lambda: list(islice(rows, self.rows_per_chunk)), [])

    def shares(self, number: int) -> list[RowChunks]:
        """The chunks, dealt out."""
        return [replace(self, first=self.first + place * self.step, step=number * self.step) for place in range(number)]


@dataclass(frozen=True)
class EncodedRows:
    """What has become of successive rows."""

    pairs: pa.RecordBatch
    bad_rows: list[BadRow]

    @property
    def num_rows(self) -> int:
        return len(self.pairs) + len(self.bad_rows)


@dataclass(frozen=True)
class RowEncoder:
    """How rows become token ids; other processes get a copy."""

    tokenizer: Tokenizer
    config: DataConfig

    def __call__(self, rows: Sequence[Row | BadRow]) -> EncodedRows:
        """The rows that can be used, encoded, and the others."""
        pairs, bad_rows = [], []
        for row in rows:
            try:
                pairs.append(encode_pair(to_pair(row, self.config), self.tokenizer, self.config))
            except BadRow as bad:
                # A copy has no traceback, whose frames would keep the whole chunk in memory.
                bad_rows.append(copy(bad))
        return EncodedRows(record_batch(pairs), bad_rows)
