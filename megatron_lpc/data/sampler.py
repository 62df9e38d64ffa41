"""Which pairs a step sees: pure functions of the number of samples consumed, whatever the data parallel size.

Micro-batch m of a global batch belongs to data parallel rank m mod dp_size. So the set of micro-batches (where they are
not packed), and with it every sum over a micro-batch, is the same in every parallel layout.

Nothing here grows with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_lpc.data.permutation import permuted


class TrainingOrder:
    """Which example each training sample is: epoch after epoch, each in an order of its own, none cut short."""

    def __init__(self, num_examples: int, seed: int) -> None:
        """
        Raises:
            ValueError: there are no examples.
        """
        if num_examples < 1:
            raise ValueError(f"num_examples is {num_examples}: an order needs at least one example.")
        self._num_examples = num_examples
        self._seed = seed

    def example_indices(self, sample_ids: Sequence[int]) -> NDArray[np.int64]:
        """Example index of each of these training samples, whose numbers count from 0 over all epochs."""
        epochs, positions = np.divmod(np.asarray(sample_ids, np.int64), self._num_examples)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            positions[of_epoch] = permuted(positions[of_epoch], self._num_examples, self._seed, int(epoch))
        return positions


def evaluation_batches(
    num_examples: int, global_batch_size: int, multiple: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Example indices 0 … num_examples - 1 once each, in global batches, each with how many leading ones count.

    The last batch is filled with examples from the start that do not count, up to the next multiple of `multiple` or to
    the global batch size.
    """
    for first in range(0, num_examples, global_batch_size):
        left = num_examples - first
        rounded_up = -(-left // multiple) * multiple
        size = min(global_batch_size, rounded_up)
        yield np.arange(first, first + size) % num_examples, min(size, left)
