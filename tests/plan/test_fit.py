"""Which change is the smallest."""

from __future__ import annotations

from typing import Any

import pytest
from planned_runs import TINY, planned, split

from megatron_lpc.plan.fit import (
    Change,
    distributed_optimizer,
    more_model_parallel_ranks,
    recomputation,
    reference_elsewhere,
    sequence_parallelism,
    smaller_micro_batches,
    smallest_change,
)
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import make_plan

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
PRECOMPUTED = {"reference": "precomputed", "reference_cache": "folder"}
LONG = {"max_length": 4096, "max_position_embeddings": 4096}
# The distributed optimizer would be enough as well.
EITHER = {"max_length": 2048, "micro_batch_size": 6, "global_batch_size": 48, "use_distributed_optimizer": False}
# No pipeline of 8 ranks divides 7 layers, and no tensor parallel ranks one query group.
UNDIVIDED: dict[str, Any] = {
    "num_layers": 7,
    "hidden_size": 8192,
    "ffn_hidden_size": 32768,
    "num_attention_heads": 64,
    "num_query_groups": 1,
    "vocab_size": 1024,
}


def change(world_size: int, model: str | dict[str, Any], **options: Any) -> Change | None:
    plan = make_plan(planned(world_size, model, **options), PlanOptions(world_size=world_size))
    assert not plan.fits
    return smallest_change(plan)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (split(8, 1) | PRECOMPUTED | LONG | {"micro_batch_size": 16}, FULL),
        (split(8, 1) | PRECOMPUTED | LONG | FULL | {"micro_batch_size": 128}, {"micro_batch_size": 64}),
        (split(1, 1) | FULL | {"micro_batch_size": 1}, {"reference_offload": True}),
        (split(4, 1) | PRECOMPUTED | EITHER, FULL),
    ],
    ids=["recompute", "micro-batch", "reference", "the first of two"],
)
def test_what_is_enough_for_8b_on_8_gpus(options, expected):
    found = change(8, "llama3-8b", **options)
    assert found is not None
    assert found.options == expected
    assert found.plan.fits


def test_more_ranks_for_a_copy_of_the_model():
    found = change(32, "llama3-70b", **split(8, 1), **PRECOMPUTED, **FULL, micro_batch_size=1)
    assert found is not None
    assert found.options == {"pipeline_model_parallel_size": 2}
    assert found.flags == "--pipeline-model-parallel-size 2"


def test_the_distributed_optimizer_comes_last():
    found = change(8, UNDIVIDED, **PRECOMPUTED, **FULL, micro_batch_size=1)
    assert found is not None
    assert found.options == {"use_distributed_optimizer": True}
    assert found.flags == "--use-distributed-optimizer"


def test_either_of_two_changes_would_do():
    plan = make_plan(
        planned(8, "llama3-8b", **split(4, 1) | PRECOMPUTED | EITHER | {"use_distributed_optimizer": True}),
        PlanOptions(world_size=8),
    )
    assert plan.fits


def test_several_changes_where_none_is_enough():
    found = change(8, UNDIVIDED, **LONG, micro_batch_size=16)
    assert found is not None
    assert found.plan.fits
    assert {"recompute_granularity", "use_distributed_optimizer"} <= set(found.options)


def test_too_few_gpus():
    assert change(1, UNDIVIDED) is None


def test_what_is_tried():
    plain = planned(4, TINY, micro_batch_size=4, tensor_model_parallel_size=2)
    assert list(recomputation(plain)) == [{"recompute_granularity": "selective"}, FULL]
    assert list(smaller_micro_batches(plain)) == [{"micro_batch_size": 2}, {"micro_batch_size": 1}]
    packed = planned(4, TINY, pack_to=4096, max_length=512, micro_batch_size=4)
    assert list(smaller_micro_batches(packed)) == [{"pack_to": 2048}, {"pack_to": 1024}]
    assert list(sequence_parallelism(plain)) == [{"sequence_parallel": True}]
    assert [sorted(options) for options in reference_elsewhere(plain)] == [
        ["reference_offload"],
        ["reference", "reference_cache", "reference_offload"],
    ]
    assert list(distributed_optimizer(plain)) == [{"use_distributed_optimizer": True}]
    first, second, *_ = more_model_parallel_ranks(plain)
    assert first == {"pipeline_model_parallel_size": 2}
    assert second == {
        "pipeline_model_parallel_size": 1,
        "tensor_model_parallel_size": 4,
        "sequence_parallel": True,
    }


def test_nothing_is_tried_twice():
    done = planned(4, TINY, **split(2, 1), **FULL, **PRECOMPUTED, micro_batch_size=1)
    for candidates in (
        recomputation,
        smaller_micro_batches,
        sequence_parallelism,
        reference_elsewhere,
        distributed_optimizer,
    ):
        assert not list(candidates(done)), candidates.__name__
