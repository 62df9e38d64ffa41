"""Rows become record batches of token ids: in order, and on several processes where there is enough to do."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import copy
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread

import pyarrow as pa

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.dataset import record_batch
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Row
from megatron_lpc.data.tokenizer import Tokenizer

ROWS_PER_CHUNK = 1024
"""What a process takes at a time. Less than that is never worth starting one."""


@dataclass(frozen=True)
class EncodedRows:
    """What has become of successive rows."""

    pairs: pa.RecordBatch
    bad_rows: list[BadRow]


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
    rows: Iterable[Row | BadRow], encoder: RowEncoder, num_workers: int | None = None
) -> Generator[EncodedRows, None, None]:
    """The rows, encoded in order by chunks of ROWS_PER_CHUNK, of which no more are in memory than are being worked on.

    The chunks are the same for every `num_workers`. Close the generator when no more is wanted: it ends the processes.

    Args:
        num_workers: processes; all cores that this process may use when None. None is started for a single chunk.

    Raises:
        ChildProcessError: a process was killed.
    """
    source = iter(rows)
    chunks = iter(lambda: list(islice(source, ROWS_PER_CHUNK)), [])
    first_chunks = list(islice(chunks, 2))
    chunks = chain(first_chunks, chunks)
    num_workers = num_workers or len(os.sched_getaffinity(0))
    if num_workers == 1 or len(first_chunks) < 2:
        yield from map(encoder, chunks)
    else:
        yield from _encode_in_processes(chunks, encoder, num_workers)


def _encode_in_processes(
    chunks: Iterable[list[Row | BadRow]], encoder: RowEncoder, num_workers: int
) -> Iterator[EncodedRows]:
    # Not by fork: this process may have threads of gloo or NCCL, and a CUDA context.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (encoder,))
    in_flight: deque[Future[tuple[EncodedRows, list[_Warning]]]] = deque()
    said: set[str] = set()

    def result() -> EncodedRows:
        encoded, warnings = in_flight.popleft().result()
        for logger, kind, text in warnings:
            if kind not in said:
                said.add(kind)
                logging.getLogger(logger).warning("%s", text)
        return encoded

    try:
        for chunk in chunks:
            in_flight.append(pool.submit(_encode_chunk, chunk))
            if len(in_flight) > 2 * num_workers:
                yield result()
        while in_flight:
            yield result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that tokenizes was killed; if for want of memory, lower --num-workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_Warning = tuple[str, str, str]
"""Name of the logger, message before its arguments are filled in, and message."""


class _Warnings(logging.Handler):
    """Keeps what a process warns of for its parent: each would say what is to be said once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[_Warning] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.name, str(record.msg), record.getMessage()))


_worker_encoder: RowEncoder
"""Of a process that tokenizes."""
_worker_warnings = _Warnings()


def _start_worker(encoder: RowEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    logger = logging.getLogger("megatron_lpc")
    logger.addHandler(_worker_warnings)
    logger.propagate = False
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed leaves no word to its children, which would wait for ever."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _encode_chunk(rows: list[Row | BadRow]) -> tuple[EncodedRows, list[_Warning]]:
    encoded = _worker_encoder(rows)
    warnings, _worker_warnings.kept = _worker_warnings.kept, []
    return encoded, warnings
