"""Micro-batches of one rank, prepared one step ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.cache import PairDataset
from megatron_lpc.data.collate import collate
from megatron_lpc.data.packing import pack
from megatron_lpc.data.sampler import StreamOrder, evaluation_batches, microbatches

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Turns rows of `dataset` into micro-batches on the CPU for one data parallel rank.

    It holds no position: an iterator starts wherever the caller says, so a run resumes exactly from its consumed samples.
    """

    dataset: PairDataset
    pad_id: int
    micro_batch_size: int
    """Pairs of a micro-batch; not read where pairs are packed."""
    global_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    pad_to_multiple: int = 1
    multiple: int = 1
    """Micro-batches of a step are a multiple of this, and if it is above 1 of one width, as the interleaved pipeline schedule needs."""
    share_prompt: bool = False
    pack_to: int | None = None
    """Tokens of the one row of a micro-batch; None: rows are not packed."""
    attention_cost: float = 0.0
    """What an attended query-key pair costs beside a token's passage through all weights; packing balances their sum."""

    def training(self, seed: int, consumed_samples: int = 0) -> Iterator[list[PairBatch]]:
        """The micro-batches of one step after the other, without end, from the sample `consumed_samples` of the stream."""
        order = StreamOrder(len(self.dataset), seed)

        def step(first: int) -> list[PairBatch]:
            rows = [order.row(first + place) for place in range(self.global_batch_size)]
            return self._aligned([self.batch([first + p for p in places], [rows[p] for p in places]) for places in self._places(rows)])

        return prefetch(step(first) for first in count(consumed_samples, self.global_batch_size))

    def evaluation(self, *, max_steps: int | None = None) -> Iterator[list[tuple[PairBatch, int]]]:
        """Steps over the data set in order, at most `max_steps`: micro-batches, each with the number of leading pairs that count.

        The sample id of a pair is its row. The last step is filled up with pairs that do not count.
        """
        unit = self.dp_size * self.multiple * (1 if self.pack_to else self.micro_batch_size)
        steps = evaluation_batches(len(self.dataset), self.global_batch_size, unit)[:max_steps]

        def load(rows: list[int], valid: int) -> list[tuple[PairBatch, int]]:
            plan = self._places(rows)
            batches = self._aligned([self.batch(ids, ids) for ids in ([rows[p] for p in places] for places in plan)])
            return [(batch, sum(p < valid for p in places)) for batch, places in zip(batches, plan, strict=True)]

        return prefetch(load(*step) for step in steps)

    def batch(self, sample_ids: Sequence[int], row_ids: Sequence[int]) -> PairBatch:
        """Any rows as one micro-batch."""
        return collate(
            [self.dataset[row] for row in row_ids],
            sample_ids,
            row_ids,
            pad_id=self.pad_id,
            pad_to_multiple=self.pad_to_multiple,
            share_prompt=self.share_prompt,
            pack_to=self.pack_to,
        )

    def _places(self, rows: list[int]) -> list[list[int]]:
        """This rank's micro-batches of a global batch of `rows`, as ascending places in it."""
        if self.pack_to is None:
            return microbatches(len(rows), self.micro_batch_size, self.dp_rank, self.dp_size)
        lengths = self.dataset.lengths[rows]
        tokens = pair_tokens(lengths, self.share_prompt)
        costs = tokens + self.attention_cost * attended(lengths, self.share_prompt)
        return pack(tokens.tolist(), costs.tolist(), self.pack_to, self.dp_size * self.multiple)[self.dp_rank :: self.dp_size]

    def _aligned(self, batches: list[PairBatch]) -> list[PairBatch]:
        if self.multiple == 1:
            return batches
        width = max(batch.tokens.size(1) for batch in batches)
        return [batch.widened(width, self.pad_id) for batch in batches]


def pair_tokens(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] tokens that pairs take in a row; lengths: [P, 3] of prompt, chosen, rejected."""
    return lengths @ np.array([1 if share_prompt else 2, 1, 1])


def attended(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] query-key pairs that causal attention lets through, without a window."""
    prompt, chosen, rejected = lengths.T
    whole = sum(n * (n + 1) // 2 for n in (prompt + chosen, prompt + rejected))
    return whole - prompt * (prompt + 1) // 2 if share_prompt else whole


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """`items` in order, up to `depth` of them made ahead in one background thread; its exceptions are raised here."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead: deque[Future[T | object]] = deque(pool.submit(next, source, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]  # only `end` is no T
