import pytest

from megatron_lpc.plan.schedule import PipelineSchedule


def test_one_stage_holds_one_micro_batch_and_never_waits():
    schedule = PipelineSchedule(stages=1, micro_batches=8)
    assert schedule.chunks_in_flight(0) == 1
    assert schedule.bubble == 0
    assert schedule.seconds([2.0]) == 16


def test_1f1b():
    """4 stages, 8 micro-batches: 3 of 11 passes are waiting."""
    schedule = PipelineSchedule(stages=4, micro_batches=8)
    assert [schedule.chunks_in_flight(rank) for rank in range(4)] == [4, 3, 2, 1]
    assert schedule.bubble == pytest.approx(3 / 11)
    assert schedule.seconds([1.0] * 4) == 11
    # The slowest stage sets the pace; the others are passed once.
    assert schedule.seconds([1.0, 1.0, 1.0, 2.0]) == 16 + 3


def test_no_more_than_there_are():
    assert PipelineSchedule(stages=4, micro_batches=2).chunks_in_flight(0) == 2


def test_interleaved():
    """2 chunks each: megatron-core warms up with 2 (4 - 0 - 1) + 4 passes, and the bubble is half as long."""
    schedule = PipelineSchedule(stages=4, micro_batches=8, chunks=2)
    assert [schedule.chunks_in_flight(rank) for rank in range(4)] == [11, 9, 7, 5]
    assert schedule.bubble == pytest.approx(1.5 / 9.5)
    assert schedule.seconds([1.0] * 4) == 9.5
    assert PipelineSchedule(stages=4, micro_batches=4, chunks=2).chunks_in_flight(0) == 8
