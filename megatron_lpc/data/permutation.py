"""Permutations that are computed where they are asked for: the swap-or-not shuffle, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 90
"""As many as Ethereum's consensus layer takes for lists of up to 2**40 entries."""


def permuted(positions: Sequence[int] | NDArray[np.int64], size: int, *key: int) -> NDArray[np.int64]:
    """Where a permutation of 0 … size - 1, a function of `key`, takes some positions; no other one is computed.

    The swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012):
    each round pairs every number x with pivot - x, and swaps the two or not by a bit that both share. So it is a
    bijection for any size and any hash.

    Args:
        positions: [N], each at least 0 and below `size`.
        size: at least 1.
        key: hashed, so that neighbouring seeds and neighbouring epochs share no permutation.

    Returns:
        [N]
    """
    text = ":".join(str(number) for number in key)
    draws = np.frombuffer(hashlib.shake_256(text.encode()).digest(16 * ROUNDS), "<u8")
    pivots = (draws[:ROUNDS] % size).astype(np.int64)
    numbers = np.asarray(positions, np.int64)
    for pivot, round_key in zip(pivots, draws[ROUNDS:], strict=True):
        partners = (pivot - numbers) % size
        swaps = _bits(np.maximum(numbers, partners), round_key)
        numbers = np.where(swaps, partners, numbers)
    return numbers


def _bits(numbers: NDArray[np.int64], key: np.uint64) -> NDArray[np.bool_]:
    """A fair bit of each number: of SplitMix64's finalizer (Steele, Lea and Flood, 2014)."""
    mixed = numbers.astype(np.uint64) ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(63)).astype(np.bool_)
