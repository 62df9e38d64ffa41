"""A tokenized data set: one folder, written once and memory-mapped by every process.

pairs-NNNNN.arrow  shards; prompt, chosen, rejected (lists of int32 token ids) and group (text or null), one record per
                   pair
lengths.bin        [P, 3] int32 tokens of the prompt, chosen and rejected of all P pairs
batch_ends.bin     int64 pairs up to the end of each record batch, over all shards
bad_rows.jsonl     the rows that were left out; only there when there are some
summary.json       fingerprint, counts, sources and options

Opening it and reading a pair take no memory that grows with the number of pairs, but for some bytes per record batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.files import whole_file
from megatron_lpc.outside.json_text import read_object
from megatron_lpc.outside.messages import reason

BAD_ROWS_FILE = "bad_rows.jsonl"
SUMMARY_FILE = "summary.json"
_LENGTHS_FILE = "lengths.bin"
_BATCH_ENDS_FILE = "batch_ends.bin"

_TEXTS = ("prompt", "chosen", "rejected")
_TOKEN_IDS = pa.list_(pa.int32())
PAIR_SCHEMA = pa.schema([*((name, _TOKEN_IDS) for name in _TEXTS), ("group", pa.string())])


class PairDataset:
    """Encoded pairs of one cache folder, memory-mapped. A pair's number, from 0, is its example index."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the folder does not hold what its summary says.
        """
        summary, self._shards, self._batch_ends, self.lengths = _open(folder)
        self._sound_batches: set[int] = set()
        self._first_batches = np.cumsum([0, *(shard.num_record_batches for shard in self._shards)])
        self.folder = folder
        self.fingerprint: str = summary["fingerprint"]
        """Hash of the data, the tokenizer and the options that made the tokens."""
        self.num_bad_rows: int = summary["bad_rows"]
        self.bad_rows_file = folder / BAD_ROWS_FILE
        """JSON lines {file, line, reason, fix} of the rows that were left out; only there when `num_bad_rows` > 0."""

    lengths: NDArray[np.int32]
    """[P, 3] tokens of the prompt, chosen and rejected of all P pairs, memory-mapped."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, example_index: int) -> EncodedPair:
        """One pair; its token ids are views of the file, not copies.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= example_index < len(self):
            raise IndexError(f"example index {example_index} of a data set of {len(self)} pairs")
        number = int(np.searchsorted(self._batch_ends, example_index, side="right"))
        start = self._batch_ends[number - 1] if number else 0
        batch, position = self._batch(number), example_index - int(start)
        prompt, chosen, rejected = (batch[name][position].values.to_numpy() for name in _TEXTS)
        return EncodedPair(prompt, chosen, rejected, batch["group"][position].as_py())

    @property
    def groups(self) -> list[str | None]:
        """[P] group of every pair; None throughout when `group_column` is unset."""
        batches = (self._batch(number)["group"].to_pylist() for number in range(len(self._batch_ends)))
        return list(chain.from_iterable(batches))

    def group_numbers(self) -> tuple[NDArray[np.int32], list[str]]:
        """[P] number of each pair's group, in the order in which they first occur, and the groups' names.

        Raises:
            ValueError: a pair has no group.
        """
        column = pa.chunked_array([self._batch(number)["group"] for number in range(len(self._batch_ends))])
        if column.null_count:
            raise ValueError(f"{self.folder}: {column.null_count} pairs have no group")
        encoded = column.dictionary_encode().combine_chunks()
        return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()

    def prompt_checksums(self) -> NDArray[np.uint32]:
        """[P] CRC-32 of every pair's prompt as token ids: equal for equal prompts. Reads all prompts once."""
        checksums = np.empty(len(self), np.uint32)
        first = 0
        for number in range(len(self._batch_ends)):
            prompts = self._batch(number)["prompt"]
            tokens, offsets = prompts.values.to_numpy(), prompts.offsets.to_numpy().tolist()
            for position, (start, end) in enumerate(pairwise(offsets), first):
                checksums[position] = zlib.crc32(tokens[start:end])
            first += len(prompts)
        return checksums

    def _batch(self, number: int) -> pa.RecordBatch:
        shard = int(np.searchsorted(self._first_batches, number, side="right")) - 1
        try:
            batch = self._shards[shard].get_batch(number - int(self._first_batches[shard]))
            if number not in self._sound_batches:
                self._check_batch(batch, number)
        except (ValueError, OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{self.folder}: batch {number} is damaged ({reason(error)}). Delete the folder; the next run builds "
                "it again."
            ) from error
        return batch

    def _check_batch(self, batch: pa.RecordBatch, number: int) -> None:
        """Raise a ValueError for other lengths, and for offsets out of a damaged file, which Arrow would follow."""
        batch.validate(full=True)
        start = int(self._batch_ends[number - 1]) if number else 0
        columns = [pc.list_value_length(batch[name]).to_numpy(zero_copy_only=False) for name in _TEXTS]
        stored = self.lengths[start : int(self._batch_ends[number])]
        if not np.array_equal(np.stack(columns, axis=1), stored):
            raise ValueError("its pairs have other lengths")
        self._sound_batches.add(number)


def record_batch(pairs: Sequence[EncodedPair]) -> pa.RecordBatch:
    """Pairs as a part of a shard."""
    texts = [_token_lists([getattr(pair, name) for pair in pairs]) for name in _TEXTS]
    groups = pa.array([pair.group for pair in pairs], pa.string())
    return pa.RecordBatch.from_arrays([*texts, groups], schema=PAIR_SCHEMA)


def _token_lists(texts: Sequence[Sequence[int]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    tokens = np.fromiter(chain.from_iterable(texts), np.int32, count=offsets[-1])
    return pa.ListArray.from_arrays(offsets, tokens)


def shard_file(folder: Path, number: int) -> Path:
    """Where shard `number` of a data set lies."""
    return folder / f"pairs-{number:05d}.arrow"


def write_index(folder: Path) -> int:
    """Write what is beside the shards of a folder, so that nobody has to read them to find a pair.

    Returns:
        The number of pairs.
    """
    num_pairs = 0
    with (
        whole_file(folder / _LENGTHS_FILE) as lengths_path,
        whole_file(folder / _BATCH_ENDS_FILE) as ends_path,
        open(lengths_path, "wb") as lengths,
        open(ends_path, "wb") as ends,
    ):
        for shard in map(_open_shard, _shard_files(folder)):
            for number in range(shard.num_record_batches):
                batch = shard.get_batch(number)
                num_pairs += len(batch)
                columns = [pc.list_value_length(batch[name]).to_numpy() for name in _TEXTS]
                lengths.write(np.stack(columns, axis=1).astype("<i4").tobytes())
                ends.write(np.array(num_pairs, "<i8").tobytes())
    return num_pairs


def _shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("pairs-*.arrow"))


def _open_shard(path: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _open(
    folder: Path,
) -> tuple[dict[str, Any], list[pa.RecordBatchFileReader], NDArray[np.int64], NDArray[np.int32]]:
    """Summary, shards, ends of record batches and lengths of a cache folder that is intact."""
    remedy = "Delete the folder; the next run builds it again"
    try:
        summary = read_object(folder / SUMMARY_FILE, {"fingerprint": str, "rows": int, "bad_rows": int})
        num_pairs = summary["rows"]
        shards = [_open_shard(path) for path in _shard_files(folder)]
        batch_ends = np.fromfile(folder / _BATCH_ENDS_FILE, "<i8")
        lengths = np.memmap(folder / _LENGTHS_FILE, "<i4", mode="r").reshape(-1, len(_TEXTS))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{folder}: unreadable data cache ({reason(error)}). {remedy}.") from error
    num_batches = sum(shard.num_record_batches for shard in shards)
    is_intact = (
        len(lengths) == num_pairs > 0
        and len(batch_ends) == num_batches > 0
        and batch_ends[-1] == num_pairs
        and bool((np.diff(batch_ends, prepend=0) >= 0).all())
        and all(shard.schema == PAIR_SCHEMA for shard in shards)
    )
    if not is_intact:
        raise ValueError(f"{folder}: the data cache does not fit its {SUMMARY_FILE}. {remedy}.")
    return summary, shards, batch_ends, lengths
