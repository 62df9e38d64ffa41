"""Tokenized data sets: written once as an Arrow file, then memory-mapped by every process."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.encode import EncodedPair, encode_pair
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Row, identity, read_rows
from megatron_lpc.data.tokenizer import Tokenizer

CACHE_VERSION = 1
"""Raise it with every change after which a row would give other tokens."""
_ROWS_PER_BATCH = 1024
_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("prompt", _TOKENS), ("chosen", _TOKENS), ("rejected", _TOKENS), ("group", pa.string())])
_PAIRS, _BAD_ROWS, _SUMMARY = "pairs.arrow", "bad_rows.jsonl", "summary.json"

logger = logging.getLogger(__name__)


class PairDataset:
    """Encoded pairs of one cache folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when the folder does not hold what its summary says."""
        try:
            summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
            self._table = pa.ipc.open_file(pa.memory_map(str(folder / _PAIRS))).read_all()
            intact = self._table.num_rows == summary["rows"] and self._table.schema == _SCHEMA
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{folder}: unreadable data cache ({error}). Delete the folder; it is built anew."
            ) from error
        if not intact:
            raise ValueError(f"{folder}: data cache does not fit its summary. Delete the folder; it is built anew.")
        self.folder = folder
        self.fingerprint: str = summary["fingerprint"]
        """Hash of the data, the tokenizer and the options that made the tokens."""
        self.num_bad_rows: int = summary["bad_rows"]
        self.bad_rows_file = folder / _BAD_ROWS
        """JSON lines {file, line, reason, fix} of the rows that were left out; only there when `num_bad_rows` > 0."""

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> EncodedPair:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a data set of {len(self)}")
        prompt, chosen, rejected = (
            self._table[name][row].values.to_numpy() for name in ("prompt", "chosen", "rejected")
        )
        return EncodedPair(prompt, chosen, rejected, self._table["group"][row].as_py())

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[P, 3] tokens of prompt, chosen and rejected."""
        columns = [pc.list_value_length(self._table[name]).to_numpy() for name in ("prompt", "chosen", "rejected")]
        return np.stack(columns, axis=1).astype(np.int64)

    @property
    def groups(self) -> list[str | None]:
        """Group of every row; None throughout when `group_column` is unset."""
        return self._table["group"].to_pylist()


def build_dataset(
    config: DataConfig,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    name: str,
    *,
    is_builder: bool = True,
    barrier: Callable[[], None] | None = None,
) -> PairDataset:
    """The tokenized pairs of `sources` (files or Hub names), from the cache when they are there.

    Only a builder writes; every process then waits at `barrier` and opens the folder, so it must be visible to all.
    Independent runs may build the same folder at one time: the first to finish wins. `name` is for messages.
    Raises BadRow at the first unusable row under `bad_rows: stop` (also when the cache was built under `skip`), ValueError when
    a source cannot be read or holds no usable row.
    """
    if not sources:
        raise ValueError(f"no files for data set `{name}`. Give them with --train-data or --valid-data.")
    fingerprint = _fingerprint(config, tokenizer, sources)
    folder = Path(config.data_cache_path) / fingerprint[:20]
    if is_builder and not folder.exists():
        _build(folder, config, tokenizer, sources, name, fingerprint)
    if barrier is not None:
        barrier()
    dataset = PairDataset(folder)
    if dataset.num_bad_rows and is_builder:
        logger.warning("%s: left out %d unusable rows, see %s", name, dataset.num_bad_rows, dataset.bad_rows_file)
    if dataset.num_bad_rows and config.bad_rows == "stop":
        with open(dataset.bad_rows_file, encoding="utf-8") as file:
            raise BadRow(**json.loads(file.readline()))
    return dataset


def _fingerprint(config: DataConfig, tokenizer: Tokenizer, sources: Sequence[str]) -> str:
    parts = {
        "version": CACHE_VERSION,
        "sources": [identity(source) for source in sources],
        "tokenizer": tokenizer.fingerprint,
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "truncation_mode": config.truncation_mode,
        "group_column": config.group_column,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _build(
    folder: Path, config: DataConfig, tokenizer: Tokenizer, sources: Sequence[str], name: str, fingerprint: str
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        bad_rows: list[BadRow] = []
        rows = _write_pairs(unfinished / _PAIRS, _encode(config, tokenizer, sources, name, bad_rows))
        if not rows:
            first = f" The first of {len(bad_rows)} bad rows: {bad_rows[0]}" if bad_rows else ""
            raise ValueError(f"data set `{name}` ({', '.join(sources)}) holds no usable row.{first}")
        if bad_rows:
            with open(unfinished / _BAD_ROWS, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(vars(bad), ensure_ascii=False) + "\n" for bad in bad_rows)
        summary = {
            "fingerprint": fingerprint,
            "rows": rows,
            "bad_rows": len(bad_rows),
            "sources": list(sources),
            "options": asdict(config),
        }
        (unfinished / _SUMMARY).write_text(json.dumps(summary, indent=2), encoding="utf-8")
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # else another run was faster and wrote the same
                raise


def _encode(
    config: DataConfig, tokenizer: Tokenizer, sources: Sequence[str], name: str, bad_rows: list[BadRow]
) -> Iterator[EncodedPair]:
    for row in _with_progress((row for source in sources for row in read_rows(source)), f"Tokenizing {name}"):
        try:
            if isinstance(row, BadRow):
                raise row
            pair = encode_pair(to_pair(row, config.group_column), tokenizer, config)
        except BadRow as bad:
            if config.bad_rows == "stop":
                raise
            bad_rows.append(bad)
        else:
            yield pair


def _write_pairs(path: Path, pairs: Iterable[EncodedPair]) -> int:
    rows = 0
    batch: list[EncodedPair] = []
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:

        def flush() -> None:
            writer.write_batch(pa.RecordBatch.from_pylist([vars(pair) for pair in batch], schema=_SCHEMA))
            batch.clear()

        for pair in pairs:
            batch.append(pair)
            rows += 1
            if len(batch) == _ROWS_PER_BATCH:
                flush()
        flush()
    return rows


def _with_progress(rows: Iterable[Row | BadRow], description: str) -> Iterator[Row | BadRow]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(rows, description=description)
