"""Rows become record batches of token ids: in order, and on several processes where there is enough to do."""

from __future__ import annotations

import os
from collections.abc import Generator
from itertools import islice

from megatron_lpc.data.parallel_encoding import encode_in_processes
from megatron_lpc.data.row_chunks import EncodedRows, RowChunks, RowEncoder


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
        yield from encode_in_processes(chunks, encoder, num_workers)
