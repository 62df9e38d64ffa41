"""Which responses of a data set are the same: where many annotators label the same pairs, most are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_lpc.data.dataset import PairDataset


@dataclass(frozen=True, kw_only=True)
class DistinctResponses:
    """The R responses of P pairs that differ in their own tokens or those of their prompt."""

    numbers: NDArray[np.int64]
    """[P, 2] number of the chosen and the rejected response of each pair, in the order in which they first occur."""
    tokens: NDArray[np.int64]
    """[R] tokens of each, its prompt's not counted."""

    @property
    def new_of_pairs(self) -> NDArray[np.int64]:
        """[P] responses of each pair that stand in no earlier one: 0, 1 or 2."""
        seen_before = np.maximum.accumulate(np.concatenate([[-1], self.numbers.max(1)]))
        return np.diff(seen_before)

    @classmethod
    def of(cls, data: PairDataset) -> DistinctResponses:
        """Those of a data set, all of which is read once.

        Two are the same by 8 bytes of a hash: among a million, two different ones collide with probability 3e-8.
        """
        keys = np.empty(2 * len(data), np.uint64)
        for index in range(len(data)):
            pair = data[index]
            prompt = hashlib.blake2b(np.asarray(pair.prompt, np.int32).tobytes(), digest_size=8)
            for place, response in enumerate((pair.chosen, pair.rejected), 2 * index):
                key = prompt.copy()
                # Where the prompt ends matters as well.
                key.update(len(pair.prompt).to_bytes(8, "little") + np.asarray(response, np.int32).tobytes())
                keys[place] = int.from_bytes(key.digest(), "little")
        return cls.numbered(keys.reshape(-1, 2), data.lengths[:, 1:])

    @classmethod
    def numbered(cls, keys: NDArray[np.uint64], lengths: NDArray[np.int32]) -> DistinctResponses:
        """Of P pairs.

        Args:
            keys: [P, 2], equal for equal responses.
            lengths: [P, 2] tokens of chosen and rejected.
        """
        _, first, number = np.unique(keys.reshape(-1), return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        tokens = lengths.reshape(-1)[first[order]].astype(np.int64)
        return cls(numbers=rank[number].reshape(-1, 2), tokens=tokens)
