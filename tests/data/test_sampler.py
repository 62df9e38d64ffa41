import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.sampler import TrainingOrder, evaluation_batches

sizes = st.integers(1, 6)


@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 50))
def test_every_epoch_is_an_order_of_all_examples(num_examples, seed, epoch):
    first = epoch * num_examples
    examples = TrainingOrder(num_examples, seed).example_indices(range(first, first + num_examples))
    assert sorted(examples.tolist()) == list(range(num_examples))


def test_an_order_depends_on_seed_and_epoch_only():
    forwards = TrainingOrder(50, seed=1).example_indices(range(150)).tolist()
    one_by_one = [TrainingOrder(50, seed=1).example_indices([sample_id]).item() for sample_id in range(150)]
    assert one_by_one == forwards
    other_seed = TrainingOrder(50, seed=2).example_indices(range(50)).tolist()
    orders = [forwards[:50], forwards[50:100], forwards[100:], other_seed]
    assert len({tuple(examples) for examples in orders}) == 4


def test_the_order_is_pinned():
    # A change would break the resume of every run there is.
    expected = [7, 1, 5, 0, 4, 6, 3, 2, 6, 1, 5, 0, 4, 3, 2, 7]
    assert TrainingOrder(8, seed=1234).example_indices(range(16)).tolist() == expected


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="num_examples is 0"):
        TrainingOrder(0, seed=1)


@given(st.integers(1, 60), st.integers(1, 20), sizes)
def test_evaluation_counts_every_example_once(num_examples, multiples, multiple):
    batches = list(evaluation_batches(num_examples, multiples * multiple, multiple))
    counted = [int(example) for examples, num_counted in batches for example in examples[:num_counted]]
    assert counted == list(range(num_examples))
    for examples, num_counted in batches:
        assert len(examples) % multiple == 0
        assert len(examples) <= multiples * multiple
        assert 0 <= examples.min() <= examples.max() < num_examples
        # No more is filled up than it takes to reach the multiple.
        assert len(examples) - num_counted < multiple
    assert len(batches) == -(-num_examples // (multiples * multiple))
