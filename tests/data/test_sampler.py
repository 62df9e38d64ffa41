import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.data.sampler import StreamOrder, evaluation_steps, microbatches

sizes = st.integers(1, 6)


@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 50))
def test_every_epoch_is_an_order_of_all_rows(num_rows, seed, epoch):
    order = StreamOrder(num_rows, seed)
    rows = [order.row(epoch * num_rows + place) for place in range(num_rows)]
    assert sorted(rows) == list(range(num_rows))


def test_an_order_depends_on_seed_and_epoch_alone():
    order = StreamOrder(50, seed=1)
    stream = [order.row(i) for i in range(150)]
    assert [StreamOrder(50, seed=1).row(i) for i in reversed(range(150))] == stream[::-1]
    epochs = [stream[:50], stream[50:100], stream[100:], [StreamOrder(50, seed=2).row(i) for i in range(50)]]
    assert len({tuple(rows) for rows in epochs}) == 4
    # Pinned: a change would break the resume of every run there is.
    assert [StreamOrder(8, seed=1234).row(i) for i in range(16)] == [0, 5, 1, 4, 2, 6, 7, 3, 6, 0, 5, 2, 7, 1, 4, 3]


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="num_rows is 0"):
        StreamOrder(0, seed=1)


@given(st.integers(0, 1000), sizes, sizes, sizes)
def test_micro_batches_are_the_same_for_every_data_parallel_size(first, micro, per_rank, dp_size):
    size = micro * per_rank * dp_size
    alone = microbatches(first, size, micro, 0, 1)
    ranks = [microbatches(first, size, micro, rank, dp_size) for rank in range(dp_size)]
    assert [ranks[m % dp_size][m // dp_size] for m in range(len(alone))] == alone
    assert [i for batch in alone for i in batch] == list(range(first, first + size))
    assert all(len(rank) == per_rank for rank in ranks)


def test_a_global_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="--global-batch-size 12 is not a multiple of --micro-batch-size 4 times data parallel size 2"):
        microbatches(0, 12, 4, 0, 2)


@given(st.integers(1, 60), sizes, sizes, sizes, st.sampled_from([1, 2, 3]))
def test_evaluation_counts_every_row_once_in_every_layout(num_rows, micro, per_rank, dp_size, multiple):
    size = micro * per_rank * dp_size * multiple
    ranks = [evaluation_steps(num_rows, size, micro, rank, dp_size, multiple=multiple) for rank in range(dp_size)]
    for steps in zip(*ranks, strict=True):
        counts = {len(step) for step in steps}
        assert len(counts) == 1
        assert counts.pop() % multiple == 0
        assert all(len(batch.rows) == micro and 0 <= min(batch.rows) <= max(batch.rows) < num_rows for step in steps for batch in step)
        # No rank runs a round of micro-batches that is padding through and through.
        assert any(batch.valid for step in steps for batch in step[-multiple:])
    counted = [row for steps in ranks for step in steps for batch in step for row in batch.rows[: batch.valid]]
    assert sorted(counted) == list(range(num_rows))
    assert len(ranks[0]) == -(-num_rows // size)
