"""Rows become record batches of token ids: in order, and on several processes where there is enough to do."""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count, islice
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.dataset import record_batch
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Row, read_rows
from megatron_lpc.data.tokenizer import Tokenizer

ROWS_PER_CHUNK = 1024
"""What a process takes at a time. Less than that is never worth starting one."""


START_METHOD = "spawn"
"""Not by fork: this process may have threads of gloo or NCCL, and a CUDA context."""


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


def encode_rows(
    chunks: RowChunks, encoder: RowEncoder, num_workers: int | None = None
) -> Generator[EncodedRows, None, None]:
    """The chunks, encoded, in order. They are the same for every `num_workers`.

    Close the generator when no more is wanted: it ends the processes.

    Args:
        num_workers: processes; all cores that this process may use when None. None is started for a single chunk.

    Raises:
        ChildProcessError: a process was killed.
        ValueError, FileNotFoundError: as `read_rows`.
        LookupError: as `encode_pair`.
    """
    num_workers = num_workers or len(os.sched_getaffinity(0))
    if num_workers == 1 or len(list(islice(chunks, 2))) < 2:
        yield from map(encoder, chunks)
    else:
        yield from _encode_in_processes(chunks, encoder, num_workers)


def _encode_in_processes(chunks: RowChunks, encoder: RowEncoder, num_workers: int) -> Iterator[EncodedRows]:
    """Process i of n of a `DataLoader` takes the chunks i, i + n, …; the loader takes from one after the other."""
    loader = DataLoader(
        encoded_chunks(chunks, encoder, num_workers),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        multiprocessing_context=START_METHOD,
        # A generator of its own, since the loader draws from it.
        generator=torch.Generator(),
    )
    said: set[str] = set()
    try:
        for item in loader:
            for logger, kind, text in item["warnings"]:
                if kind not in said:
                    said.add(kind)
                    logging.getLogger(logger).warning("%s", text)
            if isinstance(item["encoded"], Exception):
                raise item["encoded"]
            yield item["encoded"]
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            "a process that tokenizes was killed; if for want of memory, lower --num-workers"
        ) from error


def encoded_chunks(chunks: RowChunks, encoder: RowEncoder, num_workers: int) -> Any:
    """A `datasets.IterableDataset` that deals the chunks out among the processes of a `DataLoader`."""
    from datasets import IterableDataset  # Slow to import, and a run with a cache has no need of it.

    dataset = IterableDataset.from_generator(_read, gen_kwargs={"shares": chunks.shares(num_workers)})
    return dataset.map(_Encode(encoder), input_columns="rows", remove_columns="rows")


_Item = dict[str, Any]
"""Of a `datasets.IterableDataset`: `rows` is a chunk, `encoded` what has become of it. An exception takes the place of
either, since the loader would raise one with its stack trace for a message."""


def _read(shares: list[RowChunks]) -> Iterator[_Item]:
    try:
        for rows in chain.from_iterable(shares):
            yield {"rows": rows}
    except Exception as error:
        yield {"rows": error}


class _Encode:
    """The encoder goes to the processes in shared memory, as tensors do.

    What is larger than a pipe holds would block its writer for ever where a process is killed before it has read it.
    """

    def __init__(self, encoder: RowEncoder) -> None:
        self._pickled = torch.frombuffer(bytearray(pickle.dumps(encoder)), dtype=torch.uint8)

    @cached_property
    def _encoder(self) -> RowEncoder:
        encoder: RowEncoder = pickle.loads(self._pickled.numpy().tobytes())
        return encoder

    def __call__(self, rows: list[Row | BadRow] | Exception) -> _Item:
        encoded: EncodedRows | Exception
        try:
            encoded = rows if isinstance(rows, Exception) else self._encoder(rows)
        except Exception as error:
            encoded = error
        return {"encoded": encoded, "warnings": _warnings.taken()}


def _as_it_is(item: Any) -> Any:
    return item


_Warning = tuple[str, str, str]
"""Name of the logger, message before its arguments are filled in, and message."""


class _Warnings(logging.Handler):
    """Keeps what a process warns of for its parent: each would say what is to be said once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[_Warning] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.name, str(record.msg), record.getMessage()))

    def taken(self) -> list[_Warning]:
        taken, self._kept = self._kept, []
        return taken


_warnings = _Warnings()
"""Of a process that tokenizes."""


def _start_worker(_: int) -> None:
    # Of the terminal: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logger = logging.getLogger("megatron_lpc")
    logger.addHandler(_warnings)
    logger.propagate = False
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed leaves no word to its children, which would wait for ever."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
