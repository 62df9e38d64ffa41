"""A tokenized data set: one folder, written once as an Arrow file and memory-mapped by every process.

pairs.arrow      prompt, chosen, rejected (lists of int32 token ids) and group (text or null), one record per pair
bad_rows.jsonl   the rows that were left out; only there when there are some
summary.json     fingerprint, counts, sources and options
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from megatron_lpc.data.encode import EncodedPair

PAIRS_FILE = "pairs.arrow"
BAD_ROWS_FILE = "bad_rows.jsonl"
SUMMARY_FILE = "summary.json"

_TEXTS = ("prompt", "chosen", "rejected")
_TOKEN_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema([*((name, _TOKEN_IDS) for name in _TEXTS), ("group", pa.string())])
_PAIRS_PER_RECORD_BATCH = 1024


class PairDataset:
    """Encoded pairs of one cache folder, memory-mapped. A pair's number, from 0, is its example index."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the folder does not hold what its summary says.
        """
        summary, self._table = _open(folder)
        self.folder = folder
        self.fingerprint: str = summary["fingerprint"]
        """Hash of the data, the tokenizer and the options that made the tokens."""
        self.num_bad_rows: int = summary["bad_rows"]
        self.bad_rows_file = folder / BAD_ROWS_FILE
        """JSON lines {file, line, reason, fix} of the rows that were left out; only there when `num_bad_rows` > 0."""

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, example_index: int) -> EncodedPair:
        """One pair; its token ids are views of the file, not copies.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= example_index < len(self):
            raise IndexError(f"example index {example_index} of a data set of {len(self)} pairs")
        prompt, chosen, rejected = (self._table[name][example_index].values.to_numpy() for name in _TEXTS)
        return EncodedPair(prompt, chosen, rejected, self._table["group"][example_index].as_py())

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[P, 3] tokens of the prompt, chosen and rejected of all P pairs."""
        columns = [pc.list_value_length(self._table[name]).to_numpy() for name in _TEXTS]
        return np.stack(columns, axis=1).astype(np.int64)

    @property
    def groups(self) -> list[str | None]:
        """[P] group of every pair; None throughout when `group_column` is unset."""
        return self._table["group"].to_pylist()


def write_pairs(path: Path, pairs: Iterable[EncodedPair]) -> int:
    """Write `pairs.arrow` from pairs that need not fit memory together.

    Returns:
        The number of pairs.
    """
    num_pairs = 0
    batch: list[EncodedPair] = []
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for pair in pairs:
            batch.append(pair)
            if len(batch) == _PAIRS_PER_RECORD_BATCH:
                writer.write_batch(_record_batch(batch))
                num_pairs += len(batch)
                batch.clear()
        writer.write_batch(_record_batch(batch))
    return num_pairs + len(batch)


def _record_batch(pairs: Sequence[EncodedPair]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([vars(pair) for pair in pairs], schema=_SCHEMA)


def _open(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    """The summary and the pairs of a cache folder that is intact."""
    remedy = "Delete the folder; the next run builds it again"
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        table = pa.ipc.open_file(pa.memory_map(str(folder / PAIRS_FILE))).read_all()
        num_pairs = summary["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: unreadable data cache ({error}). {remedy}.") from error
    if table.num_rows != num_pairs or table.schema != _SCHEMA:
        raise ValueError(f"{folder}: the data cache does not fit its {SUMMARY_FILE}. {remedy}.")
    return summary, table
