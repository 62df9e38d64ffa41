"""Pairs read from their source while training goes on: for data sets that fit neither memory nor the local disk.

Each data parallel rank reads its share of the rows (its own files where they divide among the ranks, else every n-th
row), encodes them, and shuffles them in blocks: block k of the rank's pairs is permuted by a hash of seed, rank and k.
So one block is all that is held, and a run resumes exactly from where the reader was at the start of a block. Unlike
that of a data set on disk, the order depends on the number of data parallel ranks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.encode import EncodedPair, encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.permutation import permuted
from megatron_lpc.data.row_reader import RowReader
from megatron_lpc.data.source import BadRow, Row
from megatron_lpc.data.tokenizer import Tokenizer

_MAX_CONSECUTIVE_BAD_ROWS = 10_000
"""After so many in a row a stream is given up: it has no end, so no row after them may be usable either."""

logger = logging.getLogger(__name__)


class PairStream:
    """Encoded pairs of one data parallel rank in shuffled order, without end."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        dp_rank: int = 0,
        dp_size: int = 1,
        max_ahead: int = 0,
        records_bad_rows: bool = True,
    ) -> None:
        """
        Args:
            max_ahead: pairs that may be taken, at most, before `position` is asked for an earlier one.
            records_bad_rows: whether this process records bad rows: one process of those that read the same share.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._block_size = config.shuffle_buffer_size
        self._blocks_kept = 2 + math.ceil(max_ahead / self._block_size)
        self._block_starts: dict[int, dict[str, Any]] = {}
        """Block -> state of the reader at its start."""
        folder = Path(config.data_cache_path)
        self._bad_rows_file = folder / f"streamed_bad_rows_{dp_rank}.jsonl" if records_bad_rows else None

    def pairs(self, seed: int, consumed: int = 0, position: dict[str, Any] | None = None) -> Iterator[EncodedPair]:
        """This rank's pairs from number `consumed` on, `position` being what `self.position(consumed)` was.

        Raises:
            BadRow: under `bad_rows: stop`, the first unusable row.
            ValueError: a source cannot be read or has no usable row.
            FileNotFoundError: there is no such source.
        """
        reader = RowReader(self._config.train_data, self._dp_rank, self._dp_size, position)
        encoded = self._encoded_pairs(iter(reader))
        first_block, offset = divmod(consumed, self._block_size)
        self._block_starts[first_block] = reader.state()
        for block in count(first_block):
            pairs = list(islice(encoded, self._block_size))
            # Before the block is given away: `position` may be asked for its end by then.
            self._block_starts[block + 1] = reader.state()
            self._block_starts.pop(block - self._blocks_kept, None)
            for number in permuted(range(offset, self._block_size), self._block_size, seed, self._dp_rank, block):
                yield pairs[number]
            offset = 0

    def position(self, consumed: int) -> dict[str, Any]:
        """State of the reader from which pair number `consumed` is found again; a JSON object."""
        return self._block_starts[consumed // self._block_size]

    def _encoded_pairs(self, rows: Iterator[Row | BadRow]) -> Iterator[EncodedPair]:
        num_bad = 0
        for row in rows:
            try:
                pair = encode_pair(to_pair(row, self._config), self._tokenizer, self._config)
            except BadRow as error:
                if self._config.bad_rows == "stop":
                    raise
                num_bad += 1
                self._record(error)
                if num_bad == _MAX_CONSECUTIVE_BAD_ROWS:
                    raise ValueError(f"{num_bad} rows in succession cannot be used; the last: {error}") from error
            else:
                num_bad = 0
                yield pair

    def _record(self, bad: BadRow) -> None:
        if self._bad_rows_file is None:
            return
        self._bad_rows_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._bad_rows_file, "a", encoding="utf-8") as file:
            file.write(bad.to_json() + "\n")
        logger.warning("left out %s, see %s", bad, self._bad_rows_file)
