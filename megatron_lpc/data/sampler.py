"""Which pairs a step sees: pure functions of the number of samples consumed, whatever the data parallel size.

Micro-batch m of a global batch belongs to data parallel rank m mod dp_size, so the set of micro-batches (of unpacked ones), and with it
every sum over a micro-batch, is the same in every layout.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class StreamOrder:
    """The endless stream of training samples: epochs one after the other, each in an order of its own, none cut short."""

    def __init__(self, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}: an order needs at least one row.")
        self._num_rows, self._seed = num_rows, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def row(self, sample_id: int) -> int:
        """Row of the data set at place `sample_id` (from 0) of the stream."""
        epoch, place = divmod(sample_id, self._num_rows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[place])

    def _permutation(self, epoch: int) -> Tensor:
        # Hashed, so that neither neighbouring seeds nor neighbouring epochs share an order (seed + epoch would).
        digest = hashlib.blake2b(f"{self._seed}:{epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        return torch.randperm(self._num_rows, generator=generator)


def evaluation_batches(num_rows: int, global_batch_size: int, unit: int) -> list[tuple[list[int], int]]:
    """Rows 0 … num_rows - 1 once each, in global batches, each with the number of leading rows that count.

    The last is filled up with rows from the start that do not count, to the next multiple of `unit` or to the global batch size.
    """
    batches = []
    for first in range(0, num_rows, global_batch_size):
        size = min(global_batch_size, -(-(num_rows - first) // unit) * unit)
        batches.append(([row % num_rows for row in range(first, first + size)], min(size, num_rows - first)))
    return batches
