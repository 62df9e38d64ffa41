import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_lpc.data.packing import pack

lengths = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@given(lengths, st.integers(20, 60), st.integers(1, 4))
def test_every_item_is_in_one_bin_within_the_budget(tokens, budget, multiple):
    assume(len(tokens) % multiple == 0)
    bins = pack(tokens, [length**2 for length in tokens], budget, multiple)
    assert sorted(item for items in bins for item in items) == list(range(len(tokens)))
    assert all(items and sum(tokens[item] for item in items) <= budget for items in bins)
    assert all(items == sorted(items) for items in bins)
    assert [items[0] for items in bins] == sorted(items[0] for items in bins)
    assert len(bins) % multiple == 0
    # Any two bins exceed the budget together, or could be one: so it takes no more than about twice the fewest.
    fewest = -(-sum(tokens) // budget)
    assert len(bins) <= max(multiple, 2 * fewest + multiple)


def test_as_few_bins_as_possible():
    assert len(pack([5, 5, 5, 5], [1, 1, 1, 1], 10)) == 2
    assert len(pack([6, 6, 6, 6], [1, 1, 1, 1], 10)) == 4
    assert len(pack([1] * 6, [1] * 6, 10, multiple=3)) == 3


@given(st.lists(st.floats(1, 10), min_size=8, max_size=60), st.integers(2, 4))
def test_costs_are_balanced(costs, bins):
    costs = costs[: len(costs) // bins * bins]
    loads = [sum(costs[item] for item in items) for items in pack([1] * len(costs), costs, 1000, bins)]
    assert len(loads) == bins
    # Graham's bound for longest processing time first: 4/3 of the optimum, which is at least the mean, the costliest
    # item and, where there are more items than bins, two of the costliest bins + 1 items in one bin.
    two_in_one_bin = sum(sorted(costs)[-bins - 1 : -bins + 1]) if len(costs) > bins else 0
    optimum = max(sum(costs) / bins, max(costs), two_in_one_bin)
    assert max(loads) <= 4 / 3 * optimum


def test_errors():
    with pytest.raises(ValueError, match="item 1 has 11 tokens, more than the budget of 10"):
        pack([3, 11], [1, 1], 10)
    with pytest.raises(ValueError, match="5 items cannot fill a multiple of 2 bins"):
        pack([1] * 5, [1] * 5, 10, 2)
