"""Rows of streamed sources, read while training goes on, from wherever a run was saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from megatron_lpc.data.row import START, BadRow, Row, every_row
from megatron_lpc.data.source import open_shards
from megatron_lpc.outside.typed import misfit

_BEGINNING: dict[str, Any] = {"source": 0, "shard": 0, "position": START, "rows": 0}


def check_reader_state(state: dict[str, Any]) -> None:
    """Raise a ValueError where this is no state of a `RowReader`, such as one of an earlier version."""
    kinds = {"source": int, "shard": int, "rows": int, "position": list[int]}
    is_state = misfit(state, kinds) is None and state.keys() == _BEGINNING.keys()
    if not is_state or len(state["position"]) != len(START) or min(_numbers(state)) < 0:
        raise ValueError(
            "--load: the checkpoint is of an earlier version of the program, whose place in streamed data is not known "
            "here; start from its weights with --pretrained-checkpoint"
        )


def _numbers(state: dict[str, Any]) -> list[int]:
    return [state["source"], state["shard"], state["rows"], *state["position"]]


class RowReader:
    """One data parallel rank's share of the rows of `sources`, one source after the other, epoch after epoch.

    A rank has shards (files) of its own where those of a source divide among the ranks; else the rows are dealt out
    one by one, and each rank reads all shards. The rows are those that `read_rows` gives.

    Its state is a JSON object: the number of the source, that of the rank's shard in it, the position in the shard, and
    the rows read of the source.
    """

    def __init__(self, sources: Sequence[str], dp_rank: int, dp_size: int, state: dict[str, Any] | None = None) -> None:
        self._sources = list(sources)
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._state = _BEGINNING | (state or {})
        if self._state["source"] >= len(self._sources):
            raise ValueError("--load: the checkpoint is of more streamed sources than --train-data has")

    def state(self) -> dict[str, Any]:
        """Where it is: after the row that it gave last."""
        return dict(self._state)

    def __iter__(self) -> Iterator[Row | BadRow]:
        """Rows without end.

        Raises:
            ValueError: a source cannot be read, or none has a row for this rank.
            FileNotFoundError: there is no such source.
        """
        num_empty = 0
        while True:
            num_empty += 1
            for row in self._rows_of_source(self._sources[self._state["source"]]):
                num_empty = 0
                yield row
            # The first source may have been resumed at its end.
            if num_empty > len(self._sources):
                raise ValueError(
                    f"{', '.join(self._sources)}: no rows for data parallel rank {self._dp_rank} of {self._dp_size}. "
                    "Give more rows, or use fewer ranks."
                )
            next_source = (self._state["source"] + 1) % len(self._sources)
            self._state = _BEGINNING | {"source": next_source}

    def _rows_of_source(self, source: str) -> Iterator[Row | BadRow]:
        shards = open_shards(source, streaming=True)
        are_rows_dealt = len(shards) % self._dp_size != 0
        if not are_rows_dealt:
            shards = shards[self._dp_rank :: self._dp_size]
        indices = count(self._state["rows"])

        def is_own() -> bool:
            return next(indices) % self._dp_size == self._dp_rank

        for number in range(self._state["shard"], len(shards)):
            line, offset = self._state["position"]
            for row, position in shards[number].rows((line, offset), is_own if are_rows_dealt else every_row):
                self._state |= {"position": position, "rows": self._state["rows"] + 1}
                if row is not None:
                    yield row
            self._state |= {"shard": number + 1, "position": START}
