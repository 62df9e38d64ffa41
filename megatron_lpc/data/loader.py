"""Micro-batches of one rank from a data set on disk, prepared a step ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.cache import PairDataset
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.prefetch import prefetch
from megatron_lpc.data.sampler import StreamOrder, evaluation_batches


@dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Turns rows of `dataset` into micro-batches on the CPU for one data parallel rank.

    It holds no position: an iterator starts wherever the caller says, so a run resumes exactly from its consumed samples.
    """

    dataset: PairDataset
    planner: MicroBatchPlanner
    global_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1

    def training(self, seed: int, consumed_samples: int = 0) -> Iterator[list[PairBatch]]:
        """The micro-batches of one step after the other, without end, from the sample `consumed_samples` of the stream."""
        order = StreamOrder(len(self.dataset), seed)

        def step(first: int) -> list[PairBatch]:
            ids = range(first, first + self.global_batch_size)
            rows = [order.row(i) for i in ids]
            plan = self._places(rows)
            return self._batches(
                [[ids[p] for p in places] for places in plan], [[rows[p] for p in places] for places in plan]
            )

        return prefetch(step(first) for first in count(consumed_samples, self.global_batch_size))

    def evaluation(self, *, max_steps: int | None = None) -> Iterator[list[tuple[PairBatch, int]]]:
        """Steps over the data set in order, at most `max_steps`: micro-batches, each with the number of leading pairs that count.

        The sample id of a pair is its row. The last step is filled up with pairs that do not count.
        """
        steps = evaluation_batches(len(self.dataset), self.global_batch_size, self.planner.unit * self.dp_size)[
            :max_steps
        ]

        def load(rows: list[int], valid: int) -> list[tuple[PairBatch, int]]:
            plan = self._places(rows)
            chosen = [[rows[p] for p in places] for places in plan]
            return [
                (batch, sum(p < valid for p in places))
                for batch, places in zip(self._batches(chosen, chosen), plan, strict=True)
            ]

        return prefetch(load(*step) for step in steps)

    def _places(self, rows: list[int]) -> list[list[int]]:
        """This rank's micro-batches of a global batch of `rows`."""
        return self.planner.places(self.dataset.lengths[rows], self.dp_size)[self.dp_rank :: self.dp_size]

    def _batches(self, ids: list[list[int]], rows: list[list[int]]) -> list[PairBatch]:
        return self.planner.batches([[self.dataset[row] for row in of_batch] for of_batch in rows], ids, rows)
