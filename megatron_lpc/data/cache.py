"""The cache of tokenized data sets: each is built once, in a folder named after the fingerprint of what made it."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.dataset import BAD_ROWS_FILE, PAIRS_FILE, SUMMARY_FILE, PairDataset, write_pairs
from megatron_lpc.data.encode import EncodedPair, encode_pair
from megatron_lpc.data.fingerprint import digest
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Row, identity, read_rows
from megatron_lpc.data.template_date import keep_template_date
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.files import write_json, write_text
from megatron_lpc.terminal import progress

CACHE_VERSION = 2
"""Raise it with every change after which a row would give other tokens."""

logger = logging.getLogger(__name__)


def build_dataset(
    config: DataConfig,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    name: str,
    *,
    is_builder: bool = True,
) -> PairDataset:
    """The tokenized pairs of `sources`, from the cache where they are there.

    Only a builder writes. The other processes of a run call this when the builder has done so, and open the same
    folder. Independent runs may build the same folder at one time: the first to finish wins.

    Args:
        sources: files or Hub names.
        name: of the data set, for messages.
        is_builder: whether this process builds what is missing, and warns of rows that were left out.

    Raises:
        BadRow: under `bad_rows: stop`, the first unusable row, also of a cache that was built under `skip`.
        ValueError: a source cannot be read or holds no usable row, or the cache is damaged.
        LookupError: there are chat messages but no chat template.
        FileNotFoundError: there is no such source.
    """
    if not sources:
        raise ValueError(f"no files for data set `{name}`. Give them with --train-data or --valid-data.")
    build = _Build(config, tokenizer, sources, name)
    fingerprint = build.fingerprint()
    folder = Path(config.data_cache_path) / fingerprint[:20]
    if is_builder and not folder.exists():
        build.write(folder, fingerprint)
    dataset = PairDataset(folder)
    if dataset.num_bad_rows and is_builder:
        logger.warning("%s: left out %d unusable rows, see %s", name, dataset.num_bad_rows, dataset.bad_rows_file)
    if dataset.num_bad_rows and config.bad_rows == "stop":
        raise _first_bad_row(dataset)
    return dataset


def data_fingerprint(config: DataConfig, tokenizer: Tokenizer, identities: Sequence[str]) -> str:
    """Hash of everything that decides the tokens.

    Args:
        identities: what names each source, in order: its `identity`, or its bare name where it is only streamed.
    """
    parts = {
        "version": CACHE_VERSION,
        "sources": list(identities),
        "tokenizer": tokenizer.fingerprint,
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "truncation_mode": config.truncation_mode,
        "group_column": config.group_column,
        "chat_template_date": config.chat_template_date,
        "ignored_columns": sorted(config.ignored_columns),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Build:
    """What a data set is made of."""

    config: DataConfig
    tokenizer: Tokenizer
    sources: Sequence[str]
    name: str

    def fingerprint(self) -> str:
        return data_fingerprint(self.config, self.tokenizer, [identity(source) for source in self.sources])

    def write(self, folder: Path, fingerprint: str) -> None:
        """Build the whole folder beside its final place, then rename it: nobody ever sees half of one."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
            unfinished = Path(temporary) / folder.name
            unfinished.mkdir()
            self._write_files(unfinished, fingerprint)
            try:
                unfinished.rename(folder)
            except OSError:
                # Another run may have been faster, and has written the same.
                if not folder.exists():
                    raise

    def _write_files(self, folder: Path, fingerprint: str) -> None:
        date = keep_template_date(folder, self.tokenizer)
        bad_rows: list[BadRow] = []
        num_pairs = write_pairs(folder / PAIRS_FILE, self._encoded_pairs(bad_rows))
        if num_pairs == 0:
            first = f" The first of {len(bad_rows)} bad rows: {bad_rows[0]}" if bad_rows else ""
            raise ValueError(f"data set `{self.name}` ({', '.join(self.sources)}) holds no usable row.{first}")
        if bad_rows:
            write_text(folder / BAD_ROWS_FILE, "".join(bad.to_json() + "\n" for bad in bad_rows))
        summary = {
            # Another date makes other tokens, though the same folder is wanted on all days.
            "fingerprint": fingerprint if date is None else digest(fingerprint, date),
            "chat_template_date": date,
            "rows": num_pairs,
            "bad_rows": len(bad_rows),
            "sources": list(self.sources),
            "options": asdict(self.config),
        }
        write_json(folder / SUMMARY_FILE, summary)

    def _encoded_pairs(self, bad_rows: list[BadRow]) -> Iterator[EncodedPair]:
        """The pairs of all usable rows; under `bad_rows: skip` the others are appended to `bad_rows`."""
        for row in progress(self._rows(), f"Tokenizing {self.name}", unit="rows"):
            try:
                yield self._encode(row)
            except BadRow as bad:
                if self.config.bad_rows == "stop":
                    raise
                bad_rows.append(bad)

    def _rows(self) -> Iterator[Row | BadRow]:
        for source in self.sources:
            yield from read_rows(source)

    def _encode(self, row: Row | BadRow) -> EncodedPair:
        if isinstance(row, BadRow):
            raise row
        return encode_pair(to_pair(row, self.config), self.tokenizer, self.config)


def _first_bad_row(dataset: PairDataset) -> BadRow:
    with open(dataset.bad_rows_file, encoding="utf-8") as file:
        return BadRow(**json.loads(file.readline()))
