"""Micro-batches of one data parallel rank, on the CPU and prepared ahead: of a data set on disk, or of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.episodes import EpisodeIndex, EpisodeOrder
from megatron_lpc.data.hidden_store import HiddenStore
from megatron_lpc.data.micro_batches import IndexedPair, MicroBatchPlanner
from megatron_lpc.data.pair_hidden import PairHidden
from megatron_lpc.data.prefetch import DEPTH, prefetch
from megatron_lpc.data.sampler import TrainingOrder, evaluation_batches
from megatron_lpc.data.stream import PairStream


@dataclass(frozen=True, kw_only=True)
class PairLoader:
    """Micro-batches of a data set on disk.

    It holds no position: an iterator starts wherever the caller says, so a run resumes exactly from its consumed
    samples.
    """

    dataset: PairDataset
    planner: MicroBatchPlanner
    global_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    episodes: EpisodeIndex | None = None
    """What training takes pairs from, where those of one group share a micro-batch; evaluation goes pair by pair."""
    hidden: HiddenStore | None = None
    """Where each pair's hidden states are, which then come with the micro-batches."""

    def order(self, seed: int) -> TrainingOrder | EpisodeOrder:
        """Which example each training sample is."""
        if self.episodes is not None:
            return EpisodeOrder(self.episodes, seed)
        return TrainingOrder(len(self.dataset), seed)

    def training(self, seed: int, consumed_samples: int = 0) -> Iterator[list[PairBatch]]:
        """This rank's micro-batches of one step after the other, without end, from sample `consumed_samples` on."""
        order = self.order(seed)
        first_samples = count(consumed_samples, self.global_batch_size)
        return prefetch(self._training_step(order, first) for first in first_samples)

    def evaluation(
        self, *, max_steps: int | None = None, examples: NDArray[np.int64] | None = None
    ) -> Iterator[list[tuple[PairBatch, int]]]:
        """Steps over the data set in order, at most `max_steps`: this rank's micro-batches, each with the number of
        leading pairs that count.

        The sample id of a pair is its example index. The last step is filled up with pairs that do not count.

        Args:
            examples: the example indices to go over; all when not given.
        """
        multiple = self.planner.pairs_multiple * self.dp_size
        num_examples = len(self.dataset) if examples is None else len(examples)
        steps = evaluation_batches(num_examples, self.global_batch_size, multiple)
        return prefetch(
            self._evaluation_step(places if examples is None else examples[places], num_counted)
            for places, num_counted in islice(steps, max_steps)
        )

    def _training_step(self, order: TrainingOrder | EpisodeOrder, first_sample: int) -> list[PairBatch]:
        sample_ids = range(first_sample, first_sample + self.global_batch_size)
        examples = order.example_indices(sample_ids)
        micro_batches = [
            [self._pair(sample_ids[position], int(examples[position])) for position in positions]
            for positions in self._plan(examples, 1 if self.episodes is None else self.episodes.size)
        ]
        return self._collate(micro_batches)

    def _evaluation_step(self, examples: NDArray[np.int64], num_counted: int) -> list[tuple[PairBatch, int]]:
        plan = self._plan(examples)
        numbers = examples.tolist()
        micro_batches = [
            [self._pair(numbers[position], numbers[position]) for position in positions] for positions in plan
        ]
        counted = [sum(position < num_counted for position in positions) for positions in plan]
        return list(zip(self._collate(micro_batches), counted, strict=True))

    def _plan(self, examples: NDArray[np.int64], episode_size: int = 1) -> list[list[int]]:
        """This rank's micro-batches of a global batch of `examples`, as positions in it."""
        plan = self.planner.plan(self.dataset.lengths[examples].astype(np.int64), self.dp_size, episode_size)
        return plan[self.dp_rank :: self.dp_size]

    def _collate(self, micro_batches: list[list[IndexedPair]]) -> list[PairBatch]:
        batches = self.planner.collate(micro_batches)
        if self.hidden is None:
            return batches
        return [replace(batch, hidden=self._hidden_of(self.hidden, batch)) for batch in batches]

    def _hidden_of(self, store: HiddenStore, batch: PairBatch) -> PairHidden:
        hidden = store.read(batch.example_index.tolist())
        return hidden.map_tensors(Tensor.pin_memory) if self.planner.pin_memory else hidden

    def _pair(self, sample_id: int, example_index: int) -> IndexedPair:
        return IndexedPair(self.dataset[example_index], sample_id, example_index)


@dataclass(frozen=True, kw_only=True)
class StreamLoader:
    """Micro-batches of streamed data; each rank packs and balances its own share of each step."""

    stream: PairStream
    planner: MicroBatchPlanner
    global_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    start: dict[str, Any] | None = None
    """What `position` was when the run that is resumed had consumed as many samples."""

    def training(self, seed: int, consumed_samples: int = 0) -> Iterator[list[PairBatch]]:
        """This rank's micro-batches of one step after the other, without end, from sample `consumed_samples` on."""
        return prefetch(self._training_steps(seed, consumed_samples))

    def position(self, consumed_samples: int) -> dict[str, Any]:
        """What a checkpoint must hold of this rank's reader beside the number of samples; a JSON object."""
        return self.stream.position(consumed_samples // self.dp_size)

    def _training_steps(self, seed: int, consumed_samples: int) -> Iterator[list[PairBatch]]:
        share = self.global_batch_size // self.dp_size
        pairs = self.stream.pairs(seed, consumed_samples // self.dp_size, self.start)
        for first_sample in count(consumed_samples + self.dp_rank * share, self.global_batch_size):
            # A streamed pair has no example index to be found again by: its sample id stands in for one.
            step = [
                IndexedPair(pair, first_sample + i, first_sample + i) for i, pair in enumerate(islice(pairs, share))
            ]
            plan = self.planner.plan(np.array([indexed.pair.lengths for indexed in step]))
            yield self.planner.collate([[step[position] for position in positions] for positions in plan])


def pairs_in_flight(global_batch_size: int, dp_size: int) -> int:
    """Pairs that a rank's thread may have taken from its stream before the step that is in training, at most."""
    return (DEPTH + 2) * global_batch_size // dp_size
