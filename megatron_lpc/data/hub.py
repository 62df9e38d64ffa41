"""Data sets of the Hugging Face Hub, read through `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_lpc.data.row import START, Position, RowRead, Wanted, every_row
from megatron_lpc.data.table_rows import ROWS_PER_BATCH, rows_of
from megatron_lpc.outside.messages import reason

NAME = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(#(?P<name>[\w.+-]+))?(@(?P<data_dir>[\w./-]+))?(:(?P<splits>.+))?")
"""`owner/name`, `owner/name:split+split`, `owner/name@folder:split`, `owner/name#configuration:split`; the groups are
arguments of `load_dataset`."""


@dataclass(frozen=True)
class HubShard:
    """A split of a data set on the local disk, or a file of one that is streamed."""

    name: str
    dataset: Any
    """A `datasets.Dataset` or `datasets.IterableDataset`."""

    def rows(self, position: Position = START, wanted: Wanted = every_row) -> Iterator[RowRead]:
        """As `Shard.rows`."""
        rest = self.dataset.skip(position[0]) if position[0] else self.dataset
        batches = rest.with_format("arrow").iter(ROWS_PER_BATCH)
        try:
            yield from rows_of(self.name, batches, position[0], position, wanted)
        except Exception as error:  # the readers of `datasets` raise errors of many libraries
            raise ValueError(
                f"{self.name}: cannot be read any further ({reason(error)}). Check the data, or download the "
                "files and name them."
            ) from error


def open_hub(source: str, *, streaming: bool) -> list[HubShard]:
    """The splits that `source` names, or their files where they are streamed; nothing is read yet.

    Raises:
        ValueError: it cannot be loaded.
    """
    shards = []
    for split, dataset in _load_splits(source, streaming):
        before, _, splits = source.partition(":")
        name = f"{before}:{split}" if "+" in splits else source
        num_files = dataset.num_shards if streaming else 1
        if num_files == 1:
            shards.append(HubShard(name, dataset))
            continue
        for index in range(num_files):
            part = dataset.shard(num_files, index)
            shards.append(HubShard(f"{name} (file {index + 1} of {num_files})", part))
    return shards


def hub_identity(source: str) -> str:
    """The `datasets` fingerprints of the splits that `source` names.

    Raises:
        ValueError: it cannot be loaded.
    """
    return "+".join(dataset._fingerprint for _, dataset in _load_splits(source, streaming=False))


def _load_splits(source: str, streaming: bool) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset  # slow to import, and a run with a cache has no need of it

    named = NAME.fullmatch(source)
    assert named is not None
    options = {key: named[key] for key in ("name", "data_dir") if named[key]}
    for split in (named["splits"] or "train").split("+"):
        try:
            yield split, load_dataset(named["path"], split=split, streaming=streaming, **options)
        except Exception as error:  # the Hub client raises anything from ConnectionError to its own kinds
            raise ValueError(
                f"{source}: cannot be loaded from the Hub ({reason(error)}). Check name, configuration "
                "(owner/name#configuration), split and network, or give a file."
            ) from error
