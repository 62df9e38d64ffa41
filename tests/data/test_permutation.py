import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.permutation import permuted

KEYS = st.integers(-(2**63), 2**63)


def chi_square(counts, expected):
    """In units of its standard deviation, from its mean."""
    counts = np.asarray(counts, float)
    degrees = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5


@given(st.integers(1, 300), st.tuples(KEYS, KEYS))
def test_it_is_a_bijection(size, key):
    assert sorted(permuted(range(size), size, *key).tolist()) == list(range(size))


@given(st.integers(1, 2**40), st.data())
def test_a_position_is_computed_by_itself(size, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    together = permuted(positions, size, 7)
    assert together.tolist() == [permuted([position], size, 7).item() for position in positions]
    assert len(set(together.tolist())) == len(set(positions))
    assert 0 <= together.min() <= together.max() < size


@pytest.mark.parametrize("size", [2, 4])
def test_small_permutations_are_equally_frequent(size):
    counts = Counter(tuple(permuted(range(size), size, 5, epoch).tolist()) for epoch in range(480))
    orders = list(itertools.permutations(range(size)))
    assert abs(chi_square([counts[order] for order in orders], 480 / len(orders))) < 4


def test_every_number_goes_everywhere():
    keys, size = 300, 30
    went = np.zeros((size, size), int)
    for key in range(keys):
        went[np.arange(size), permuted(range(size), size, key)] += 1
    assert abs(chi_square(went, keys / size)) < 4


def test_neighbours_are_unrelated():
    # Of one large permutation: where neighbours go, how far apart, and whether the order is kept.
    size = 100_000
    numbers = permuted(range(size), size, 1234, 0)
    cells, _, _ = np.histogram2d(numbers[:-1], numbers[1:], bins=20, range=[[0, size], [0, size]])
    assert abs(chi_square(cells, (size - 1) / 400)) < 4
    assert abs(np.corrcoef(numbers, np.arange(size))[0, 1]) < 4 / size**0.5
    other = permuted(range(size), size, 1234, 1)
    assert (numbers == other).sum() < 8


def test_it_takes_no_memory_for_what_is_not_asked_for():
    tracemalloc.start()
    permuted(range(512), 10**12, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
