import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.micro_batches import MicroBatchPlanner

sizes = st.integers(1, 6)


def lengths(count):
    return np.ones((count, 3), dtype=np.int64)


@given(sizes, sizes, sizes)
def test_micro_batches_are_the_same_for_every_data_parallel_size(micro, per_rank, dp_size):
    size = micro * per_rank * dp_size
    planner = MicroBatchPlanner(pad_id=0, micro_batch_size=micro)
    drawn = np.random.default_rng(size).integers(1, 9, (size, 3))
    plan = planner.plan(drawn, dp_size)
    assert plan == planner.plan(drawn)
    assert sorted(position for micro_batch in plan for position in micro_batch) == list(range(size))
    assert {len(micro_batch) for micro_batch in plan} == {micro}
    assert len(plan) % dp_size == 0


@pytest.mark.parametrize(("share_prompt", "plan"), [(False, [[1, 3], [0, 2]]), (True, [[0, 3], [1, 2]])])
def test_pairs_of_like_length_are_padded_together_the_longest_first(share_prompt, plan):
    drawn = np.array([[2, 6, 6], [2, 9, 1], [2, 2, 2], [2, 8, 8]])
    assert MicroBatchPlanner(pad_id=0, micro_batch_size=2, share_prompt=share_prompt).plan(drawn) == plan


@given(sizes, sizes, sizes)
def test_pairs_of_one_length_stay_in_order(micro, per_rank, dp_size):
    size = micro * per_rank * dp_size
    plan = MicroBatchPlanner(pad_id=0, micro_batch_size=micro).plan(lengths(size), dp_size)
    assert plan == [list(range(start, start + micro)) for start in range(0, size, micro)]


def test_a_global_batch_that_cannot_be_split_is_refused():
    with pytest.raises(
        ValueError, match="--global-batch-size 12 is not a multiple of --micro-batch-size 4 times data parallel size 2"
    ):
        MicroBatchPlanner(pad_id=0, micro_batch_size=4).plan(lengths(12), 2)


def test_a_pair_that_does_not_fit_is_named():
    drawn = np.array([[1, 2, 3], [3, 3, 3]])
    planner = MicroBatchPlanner(pad_id=0, micro_batch_size=4, pack_to=10)
    message = r"--pack-to 10: pair 1 of 2 .from 0. has 12 tokens with both responses; raise it to that"
    with pytest.raises(ValueError, match=message):
        planner.plan(drawn)
    sharing = MicroBatchPlanner(pad_id=0, micro_batch_size=4, pack_to=10, share_prompt=True)
    sharing.plan(drawn)
