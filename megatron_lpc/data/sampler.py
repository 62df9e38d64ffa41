"""Which pairs a step sees: pure functions of the number of samples consumed, whatever the data parallel size.

Micro-batch m of a global batch belongs to data parallel rank m mod dp_size. So the set of micro-batches (where they are
not packed), and with it every sum over a micro-batch, is the same in every parallel layout.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


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
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def example_index(self, sample_id: int) -> int:
        """Example index of training sample number `sample_id`, counted from 0 over all epochs."""
        epoch, position = divmod(sample_id, self._num_examples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = hashed_permutation(self._num_examples, self._seed, epoch)
        return int(self._permutation[position])


def hashed_permutation(size: int, *key: int) -> Tensor:
    """[size] int64: a permutation that is a function of `key`.

    The key is hashed, so that neighbouring seeds and neighbouring epochs share no permutation, as seed + epoch would.
    """
    text = ":".join(str(number) for number in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.randperm(size, generator=generator)


def evaluation_batches(num_examples: int, global_batch_size: int, multiple: int) -> list[tuple[list[int], int]]:
    """Example indices 0 … num_examples - 1 once each, in global batches, each with how many leading ones count.

    The last batch is filled with examples from the start that do not count, up to the next multiple of `multiple` or to
    the global batch size.
    """
    batches = []
    for first in range(0, num_examples, global_batch_size):
        left = num_examples - first
        rounded_up = -(-left // multiple) * multiple
        size = min(global_batch_size, rounded_up)
        examples = [example % num_examples for example in range(first, first + size)]
        batches.append((examples, min(size, left)))
    return batches
