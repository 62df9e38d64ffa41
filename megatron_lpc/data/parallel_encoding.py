"""Chunks of rows are encoded by processes of a `DataLoader` over a `datasets.IterableDataset`.

Process i of n reads and encodes the chunks i, i + n, …, and the loader takes a chunk from one after the other, so they
come in order.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader

from megatron_lpc.data.row_chunks import EncodedRows, RowChunks, RowEncoder
from megatron_lpc.data.source import BadRow, Row

START_METHOD = "spawn"
"""Not by fork: this process may have threads of gloo or NCCL, and a CUDA context."""


def encode_in_processes(chunks: RowChunks, encoder: RowEncoder, num_workers: int) -> Iterator[EncodedRows]:
    """The chunks, encoded, in order; as `encode_rows`."""
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
        if not any(text in str(error) for text in ("is killed by signal", "exited unexpectedly")):
            raise
        raise ChildProcessError(
            "a process that tokenizes was killed; if for want of memory, lower --num-workers"
        ) from error


def encoded_chunks(chunks: RowChunks, encoder: RowEncoder, num_workers: int) -> Any:
    """A `datasets.IterableDataset` that deals the chunks out among the processes of a `DataLoader`."""
    # Slow to import, and a run with a cache has no need of them.
    from datasets import IterableDataset
    from datasets.iterable_dataset import ExamplesIterable

    # Not `from_generator`, which leaves a lock in the cache of `datasets` for each call, and needs to write there.
    dataset = IterableDataset(ExamplesIterable(_read, {"shares": chunks.shares(num_workers)}))
    return dataset.map(_Encode(encoder), input_columns="rows", remove_columns="rows")


_Item = dict[str, Any]
"""Of a `datasets.IterableDataset`: `rows` is a chunk, `encoded` what has become of it. An exception takes the place of
either, since the loader would raise one with its stack trace for a message."""


def _read(shares: list[RowChunks]) -> Iterator[tuple[str, _Item]]:
    """Of the process that has these shares: a key, which is not used, and an item."""
    try:
        for rows in chain.from_iterable(shares):
            yield "", {"rows": rows}
    except Exception as error:
        yield "", {"rows": error}


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
