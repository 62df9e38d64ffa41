"""The cache of tokenized data sets: each is built once, in a folder named after the fingerprint of what made it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.dataset import BAD_ROWS_FILE, SUMMARY_FILE, PairDataset, write_index
from megatron_lpc.data.fingerprint import digest
from megatron_lpc.data.row_chunks import EncodedRows, RowChunks, RowEncoder
from megatron_lpc.data.shards import bad_rows_files, merge_bad_rows, num_shards, write_shards
from megatron_lpc.data.source import BadRow, identity
from megatron_lpc.data.template_date import keep_template_date
from megatron_lpc.data.tokenization import encode_rows
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.files import write_json
from megatron_lpc.outside.files import read_text
from megatron_lpc.outside.json_text import parse_json
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.outside.typed import check
from megatron_lpc.terminal import progress

_MAX_BAD_ROWS_BYTES = 2**30
_BAD_ROW = {"file": str, "line": int, "reason": str, "fix": str}
CACHE_VERSION = 4
"""Raise it with every change after which a row would give other tokens, or the folder other files."""

logger = logging.getLogger(__name__)


def build_dataset(config: DataConfig, tokenizer: Tokenizer, sources: Sequence[str], name: str) -> PairDataset:
    """The tokenized pairs of `sources`, from the cache where they are there.

    What is missing is built, after the shards that an interrupted build has left. Of independent runs that need the
    same folder at one time, one builds it and the others wait.

    Args:
        sources: files or Hub names.
        name: of the data set, for messages.

    Raises:
        BadRow: under `bad_rows: stop`, the first unusable row, also of a cache that was built under `skip`.
        ValueError: a source cannot be read or holds no usable row, or the cache is damaged.
        LookupError: there are chat messages but no chat template.
        FileNotFoundError: there is no such source.
        ChildProcessError: a process that tokenizes was killed.
    """
    if not sources:
        raise ValueError(f"no files for data set `{name}`. Give them with --train-data or --valid-data.")
    build = _Build(config, tokenizer, sources, name)
    fingerprint = build.fingerprint()
    folder = Path(config.data_cache_path) / fingerprint[:20]
    if not folder.exists():
        build.write(folder, fingerprint)
    dataset = PairDataset(folder)
    if dataset.num_bad_rows:
        logger.warning("%s: left out %d unusable rows, see %s", name, dataset.num_bad_rows, dataset.bad_rows_file)
        _refuse_bad_rows(config, dataset.bad_rows_file)
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
        "data_format": config.data_format,
        "columns": [
            config.prompt_column,
            config.chosen_column,
            config.rejected_column,
            config.system_column,
            config.tools_column,
        ],
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
        unfinished = folder.with_name(f".building-{folder.name}")
        with self._lock(folder.with_name(f".{folder.name}.lock")):
            if folder.exists():
                return
            unfinished.mkdir(exist_ok=True)
            try:
                self._write_files(unfinished, fingerprint)
            except Exception:
                if not num_shards(unfinished):
                    shutil.rmtree(unfinished)
                raise
            for merged in bad_rows_files(unfinished):
                merged.unlink()
            unfinished.rename(folder)

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """Held by the one process that builds; a process that is killed lets go of it."""
        lock = FileLock(path)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logger.warning("%s: waiting for another run that tokenizes the same data (it holds %s)", self.name, path)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _write_files(self, folder: Path, fingerprint: str) -> None:
        if (folder / SUMMARY_FILE).exists():
            return
        for file in bad_rows_files(folder):
            _refuse_bad_rows(self.config, file)
        if num_shards(folder):
            logger.warning("%s: going on after %d shards of an interrupted run", self.name, num_shards(folder))
        date = keep_template_date(folder, self.tokenizer)
        write_shards(folder, self._encode)
        num_bad_rows = merge_bad_rows(folder)
        num_pairs = write_index(folder)
        if num_pairs == 0:
            problem = f"data set `{self.name}` ({', '.join(self.sources)}) holds no usable row."
            if num_bad_rows:
                problem += f" The first of {num_bad_rows} bad rows: {_first_bad_row(folder / BAD_ROWS_FILE)}"
            raise ValueError(problem)
        summary = {
            # Another date makes other tokens, though the same folder is wanted on all days.
            "fingerprint": fingerprint if date is None else digest(fingerprint, date),
            "chat_template_date": date,
            "rows": num_pairs,
            "bad_rows": num_bad_rows,
            "sources": list(self.sources),
            "options": asdict(self.config),
        }
        write_json(folder / SUMMARY_FILE, summary)

    def _encode(self, first_chunk: int) -> Generator[EncodedRows, None, None]:
        """The chunks from a number on, encoded; under `bad_rows: stop` up to the first row that cannot be."""
        chunks = RowChunks(tuple(self.sources), first_chunk)
        with closing(encode_rows(chunks, RowEncoder(self.tokenizer, self.config), self.config.num_workers)) as encoded:
            for chunk in progress(encoded, f"Tokenizing {self.name}", unit="rows", size=lambda chunk: chunk.num_rows):
                if chunk.bad_rows and self.config.bad_rows == "stop":
                    raise chunk.bad_rows[0]
                yield chunk


def _refuse_bad_rows(config: DataConfig, file: Path) -> None:
    """Raises the first row of a file of bad rows, unless they are skipped."""
    if config.bad_rows == "stop":
        raise _first_bad_row(file)


def _first_bad_row(file: Path) -> BadRow:
    first = next(read_bad_rows(file), None)
    if first is None:
        raise ValueError(f"{file}: is empty. Delete its folder; the next run builds it again.")
    return first


def read_bad_rows(file: Path) -> Iterator[BadRow]:
    """The rows that were left out, as `BAD_ROWS_FILE` has them.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        for line in read_text(file, _MAX_BAD_ROWS_BYTES).splitlines():
            found = parse_json(line)
            check(found, _BAD_ROW, "a line")
            yield BadRow(**{name: found[name] for name in _BAD_ROW})
    except Malformed as error:
        raise ValueError(f"{file}: {error}. Delete its folder; the next run builds it again.") from error
