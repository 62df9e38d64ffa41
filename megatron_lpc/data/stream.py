"""Pairs read from their source while training goes on: for data sets that fit neither memory nor the local disk.

A rank reads its share of the rows (`datasets.distributed.split_dataset_by_node`: its own files where they divide among the ranks, else
every n-th row), encodes them, and shuffles them in blocks: block k of the rank's pairs is permuted by a hash of seed, rank and k. So a
block is all that is held, and a run resumes exactly from where the reader was at the start of a block. The order depends on the number of
data parallel ranks, as it does not for data sets on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.encode import EncodedPair, encode_pair
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.prefetch import DEPTH, prefetch
from megatron_lpc.data.source import BadRow, Place, Row, open_stream
from megatron_lpc.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class RowReader:
    """Rows of `sources` one after the other, epoch after epoch: the share of one rank. Its state is a JSON object."""

    def __init__(self, sources: Sequence[str], rank: int, size: int, state: dict[str, Any] | None = None) -> None:
        self._sources, self._rank, self._size = list(sources), rank, size
        self._at: dict[str, Any] = {"source": 0, "rows": 0, "dataset": None}
        self._at |= state or {}
        self._open: Any = None

    def state(self) -> dict[str, Any]:
        """Where it is: after the row that it gave last."""
        return self._at | {"dataset": self._open.state_dict() if self._open is not None else self._at["dataset"]}

    def __iter__(self) -> Iterator[Row]:
        """Raises ValueError when a source cannot be read."""
        while True:
            source = self._sources[self._at["source"]]
            self._open = open_stream(source, self._rank, self._size)
            if self._at["dataset"] is not None:
                self._open.load_state_dict(self._at["dataset"])
            try:
                for values in self._open:
                    self._at["rows"] += 1
                    yield Row(self._place(source), values)
            except (OSError, EOFError, ValueError, TypeError) as error:
                # `datasets` raises errors of its own, which are ValueErrors, from those of its readers.
                if isinstance(error, BadRow):
                    raise
                raise ValueError(
                    f"{source}: cannot be read after {self._place(source)} ({error}). Check the data."
                ) from error
            self._open = None
            self._at = {"source": (self._at["source"] + 1) % len(self._sources), "rows": 0, "dataset": None}

    def _place(self, source: str) -> Place:
        # Rows are dealt out one by one where there are fewer files than ranks; else a rank counts those of its own files.
        if self._size > 1 and self._open.num_shards % self._size:
            return Place(source, (self._at["rows"] - 1) * self._size + self._rank + 1)
        return Place(source if self._size == 1 else f"{source} (share {self._rank} of {self._size})", self._at["rows"])


class PairStream:
    """Encoded pairs of one rank in shuffled order, without end."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        seed: int,
        rank: int = 0,
        size: int = 1,
        ahead: int = 0,
        writes: bool = True,
    ) -> None:
        """
        Args:
            ahead: pairs that are taken before `position` is asked for an earlier one, at most.
            writes: whether this process records bad rows; one of those that read the same share.
        """
        self._config, self._tokenizer, self._seed, self._rank, self._size = config, tokenizer, seed, rank, size
        self._block = config.shuffle_buffer_size
        self._kept = 2 + math.ceil(ahead / self._block)
        self._starts: dict[int, dict[str, Any]] = {}
        """Block -> state of the reader at its start."""
        self._bad_rows = Path(config.data_cache_path) / f"streamed_bad_rows_{rank}.jsonl" if writes else None

    def pairs(self, consumed: int = 0, position: dict[str, Any] | None = None) -> Iterator[EncodedPair]:
        """Pairs from number `consumed` on, `position` being what `self.position(consumed)` was.

        Raises BadRow at the first unusable row under `bad_rows: stop`, ValueError when a source cannot be read or has no usable row.
        """
        reader = RowReader(self._config.train_data, self._rank, self._size, position)
        first, offset = divmod(consumed, self._block)
        rows = iter(reader)
        for block in count(first):
            self._starts[block] = reader.state()
            self._starts.pop(block - self._kept, None)
            encoded = list(islice(self._encoded(rows), self._block))
            yield from [encoded[place] for place in self._order(block)][offset if block == first else 0 :]

    def position(self, consumed: int) -> dict[str, Any]:
        """State of the reader from which pair `consumed` is found again."""
        return self._starts[consumed // self._block]

    def _order(self, block: int) -> list[int]:
        digest = hashlib.blake2b(f"{self._seed}:{self._rank}:{block}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        return torch.randperm(self._block, generator=generator).tolist()

    def _encoded(self, rows: Iterator[Row]) -> Iterator[EncodedPair]:
        bad = 0
        for row in rows:
            try:
                yield encode_pair(to_pair(row, self._config.group_column), self._tokenizer, self._config)
                bad = 0
            except BadRow as error:
                if self._config.bad_rows == "stop":
                    raise
                bad += 1
                self._record(error)
                if bad == _HOPELESS:
                    raise ValueError(f"{bad} rows in a row cannot be used; the last: {error}") from error

    def _record(self, bad: BadRow) -> None:
        if self._bad_rows is None:
            return
        self._bad_rows.parent.mkdir(parents=True, exist_ok=True)
        with open(self._bad_rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(vars(bad), ensure_ascii=False) + "\n")
        logger.warning("left out %s, see %s", bad, self._bad_rows)


_HOPELESS = 10_000
"""Bad rows without a good one between after which a stream is given up: it might be bad to its end, which does not come."""


@dataclass(frozen=True, kw_only=True)
class StreamLoader:
    """Turns a stream into micro-batches on the CPU for one data parallel rank, which packs and balances its own share of each step."""

    stream: PairStream
    planner: MicroBatchPlanner
    global_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    start: dict[str, Any] | None = None
    """What `position` was when the run that is resumed had consumed as many samples."""

    def training(self, seed: int, consumed_samples: int = 0) -> Iterator[list[PairBatch]]:
        """The micro-batches of one step after the other, without end. The seed is the stream's own."""
        share = self.global_batch_size // self.dp_size

        def steps() -> Iterator[list[PairBatch]]:
            pairs = self.stream.pairs(consumed_samples // self.dp_size, self.start)
            for first in count(consumed_samples + self.dp_rank * share, self.global_batch_size):
                step = list(islice(pairs, share))
                lengths = np.array([[len(pair.prompt), len(pair.chosen), len(pair.rejected)] for pair in step])
                plan = self.planner.places(lengths)
                ids = [[first + place for place in places] for places in plan]
                # A stream has no rows to come back to: the sample stands in for its row.
                yield self.planner.batches([[step[place] for place in places] for places in plan], ids, ids)

        return prefetch(steps())

    def position(self, consumed_samples: int) -> dict[str, Any]:
        """What a checkpoint must hold of the reader beside the number of samples."""
        return self.stream.position(consumed_samples // self.dp_size)


def pairs_ahead(global_batch_size: int, dp_size: int) -> int:
    """Pairs that a rank's thread may have taken before the step that is in training."""
    return (DEPTH + 2) * global_batch_size // dp_size
