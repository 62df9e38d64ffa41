"""Rows of streamed sources, read while training goes on, from wherever a run was saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_lpc.data.source import Location, Row, open_stream


class RowReader:
    """One data parallel rank's share of the rows of `sources`, one source after the other, epoch after epoch.

    Its state is a JSON object: the number of the source, the rows read of it, and the state that `datasets` has.
    """

    def __init__(self, sources: Sequence[str], dp_rank: int, dp_size: int, state: dict[str, Any] | None = None) -> None:
        self._sources = list(sources)
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._state: dict[str, Any] = {"source": 0, "rows": 0, "dataset": None} | (state or {})
        self._dataset: Any = None
        """The open source, a `datasets.IterableDataset`."""

    def state(self) -> dict[str, Any]:
        """Where it is: after the row that it gave last."""
        if self._dataset is None:
            return dict(self._state)
        return self._state | {"dataset": self._dataset.state_dict()}

    def __iter__(self) -> Iterator[Row]:
        """Rows without end.

        Raises:
            ValueError: a source cannot be read.
            FileNotFoundError: there is no such source.
        """
        while True:
            source = self._sources[self._state["source"]]
            self._dataset = open_stream(source, self._dp_rank, self._dp_size)
            if self._state["dataset"] is not None:
                self._dataset.load_state_dict(self._state["dataset"])
            yield from self._rows_of(source)
            self._dataset = None
            next_source = (self._state["source"] + 1) % len(self._sources)
            self._state = {"source": next_source, "rows": 0, "dataset": None}

    def _rows_of(self, source: str) -> Iterator[Row]:
        rows = iter(self._dataset)
        while True:
            try:
                values = next(rows, None)
            except (OSError, EOFError, ValueError, TypeError) as error:
                # `datasets` raises errors of its own, which are ValueErrors, from those of its readers.
                after = self._location(source)
                raise ValueError(f"{source}: cannot be read after {after} ({error}). Check the data.") from error
            if values is None:
                return
            self._state["rows"] += 1
            yield Row(self._location(source), values)

    def _location(self, source: str) -> Location:
        """Where the row that was read last stands."""
        rows = self._state["rows"]
        if self._dp_size == 1:
            return Location(source, rows)
        if self._dataset.num_shards % self._dp_size:
            # The files do not divide among the ranks, so rows are dealt out one by one.
            return Location(source, (rows - 1) * self._dp_size + self._dp_rank + 1)
        return Location(f"{source} (share {self._dp_rank} of {self._dp_size})", rows)
