"""The shards of a data set that is being built: each appears whole, so an interrupted build goes on after the last."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from itertools import chain, count, islice
from pathlib import Path

import pyarrow as pa

from megatron_lpc.data.dataset import BAD_ROWS_FILE, PAIR_SCHEMA, shard_file
from megatron_lpc.data.row_chunks import EncodedRows
from megatron_lpc.data.source import BadRow
from megatron_lpc.files import whole_file, write_text

CHUNKS_PER_SHARD = 256
"""An interruption loses less than so many chunks: minutes of one core. 100 million rows make 382 shards."""

Encode = Callable[[int], Generator[EncodedRows, None, None]]
"""The encoded chunks from a number on."""


def write_shards(folder: Path, encode: Encode) -> None:
    """Write the shards that `folder` does not hold yet."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    num_finished = num_shards(folder)
    with closing(encode(num_finished * CHUNKS_PER_SHARD)) as encoded:
        for number in count(num_finished):
            shard = islice(encoded, CHUNKS_PER_SHARD)
            first = next(shard, None)
            if first is None:
                return
            _write_shard(folder, number, chain([first], shard))


def num_shards(folder: Path) -> int:
    """Shards that are finished."""
    return next(number for number in count() if not shard_file(folder, number).exists())


def bad_rows_files(folder: Path) -> list[Path]:
    """Files of the rows that were left out, one for each shard that has any, as `BAD_ROWS_FILE`."""
    return sorted(folder.glob("bad_rows-*.jsonl"))


def merge_bad_rows(folder: Path) -> int:
    """Write one file of all rows that were left out, if there are some.

    Returns:
        Their number.
    """
    parts = bad_rows_files(folder)
    if not parts:
        return 0
    with whole_file(folder / BAD_ROWS_FILE) as path, open(path, "wb") as merged:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, merged)
    with open(folder / BAD_ROWS_FILE, "rb") as merged:
        return sum(1 for _ in merged)


def _write_shard(folder: Path, number: int, encoded: Iterable[EncodedRows]) -> None:
    bad_rows: list[BadRow] = []
    with whole_file(shard_file(folder, number)) as path:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, PAIR_SCHEMA) as writer:
            for chunk in encoded:
                writer.write_batch(chunk.pairs)
                bad_rows += chunk.bad_rows
        if bad_rows:
            lines = "".join(bad.to_json() + "\n" for bad in bad_rows)
            write_text(folder / f"bad_rows-{number:05d}.jsonl", lines)
