"""Micro-batches of one rank, prepared one step ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.cache import PairDataset
from megatron_lpc.data.collate import collate
from megatron_lpc.data.sampler import EvaluationMicroBatch, StreamOrder, evaluation_steps, microbatches

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Turns rows of `dataset` into micro-batches on the CPU for one data parallel rank.

    It holds no position: an iterator starts wherever the caller says, so a run resumes exactly from its consumed samples.
    """

    dataset: PairDataset
    pad_id: int
    micro_batch_size: int
    global_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    pad_to_multiple: int = 1
    one_width: bool = False
    """Give all micro-batches of a step rows of the same length, as the interleaved pipeline schedule needs."""

    def training(self, seed: int, consumed_samples: int = 0) -> Iterator[list[PairBatch]]:
        """The micro-batches of one step after the other, without end, from the sample `consumed_samples` of the stream."""
        order = StreamOrder(len(self.dataset), seed)
        shape = (self.global_batch_size, self.micro_batch_size, self.dp_rank, self.dp_size)

        def step(first: int) -> list[PairBatch]:
            return self._aligned([self.batch(ids, [order.row(i) for i in ids]) for ids in microbatches(first, *shape)])

        return prefetch(step(first) for first in count(consumed_samples, self.global_batch_size))

    def evaluation(self, *, max_steps: int | None = None, multiple: int = 1) -> Iterator[list[tuple[PairBatch, int]]]:
        """Steps over the data set in order, at most `max_steps`: micro-batches, each with the number of leading pairs that count.

        The sample id of a pair is its row. `multiple` as in `evaluation_steps`.
        """
        shape = (self.global_batch_size, self.micro_batch_size, self.dp_rank, self.dp_size)
        steps = evaluation_steps(len(self.dataset), *shape, multiple=multiple)[:max_steps]

        def load(step: list[EvaluationMicroBatch]) -> list[tuple[PairBatch, int]]:
            batches = self._aligned([self.batch(batch.rows, batch.rows) for batch in step])
            return [(batch, plan.valid) for batch, plan in zip(batches, step, strict=True)]

        return prefetch(load(step) for step in steps)

    def _aligned(self, batches: list[PairBatch]) -> list[PairBatch]:
        if not self.one_width:
            return batches
        width = max(batch.tokens.size(1) for batch in batches)
        return [batch.widened(width, self.pad_id) for batch in batches]

    def batch(self, sample_ids: Sequence[int], row_ids: Sequence[int]) -> PairBatch:
        """Any rows as one micro-batch."""
        pairs = [self.dataset[row] for row in row_ids]
        return collate(pairs, sample_ids, row_ids, pad_id=self.pad_id, pad_to_multiple=self.pad_to_multiple)


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """`items` in order, up to `depth` of them made ahead in one background thread; its exceptions are raised here."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead: deque[Future[T | object]] = deque(pool.submit(next, source, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]  # only `end` is no T
