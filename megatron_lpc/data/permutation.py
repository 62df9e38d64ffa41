"""Permutations that are computed where they are asked for: the swap-or-not shuffle, in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

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
    draws = _draws(2 * ROUNDS, key)
    pivots = (draws[:ROUNDS] % size).astype(np.int64)
    return _shuffled(np.asarray(positions, np.int64), size, zip(pivots, draws[ROUNDS:], strict=True))


def permuted_each(
    positions: NDArray[np.int64], sizes: NDArray[np.int64], streams: NDArray[np.int64], *key: int
) -> NDArray[np.int64]:
    """`permuted`, where each position has a permutation of its own: of 0 … size - 1, a function of stream and `key`.

    Args:
        positions, sizes, streams: [N] each; a position is below its size, a stream at least 0.

    Returns:
        [N]
    """
    draws = _draws(2 * ROUNDS, key)
    own = _mixed(streams.astype(np.uint64))
    rounds = zip(draws[:ROUNDS], draws[ROUNDS:], strict=True)
    return _shuffled(positions, sizes, ((_below(sizes, draw, own), round_key ^ own) for draw, round_key in rounds))


def drawn_below(sizes: NDArray[np.int64], streams: NDArray[np.int64], *key: int) -> NDArray[np.int64]:
    """[N] numbers of which each is drawn from 0 … size - 1, a function of its stream and `key`. Arguments as of
    `permuted_each`."""
    return _below(sizes, _draws(1, key)[0], _mixed(streams.astype(np.uint64)))


def _draws(count: int, key: tuple[int, ...]) -> NDArray[np.uint64]:
    text = ":".join(str(number) for number in key)
    return np.frombuffer(hashlib.shake_256(text.encode()).digest(8 * count), "<u8")


def _below(sizes: NDArray[np.int64], draw: np.uint64, own: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (_mixed(draw ^ own) % sizes.astype(np.uint64)).astype(np.int64)


def _shuffled(
    numbers: NDArray[np.int64], size: int | NDArray[np.int64], rounds: Iterable[tuple[Any, Any]]
) -> NDArray[np.int64]:
    """Swap-or-not with a pivot and a key per round, of all numbers together or of each."""
    for pivot, round_key in rounds:
        partners = (pivot - numbers) % size
        # A fair bit of each number.
        swaps = (_mixed(np.maximum(numbers, partners).astype(np.uint64) ^ round_key) >> np.uint64(63)).astype(np.bool_)
        numbers = np.where(swaps, partners, numbers)
    return numbers


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014), whose high bits are fair."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
