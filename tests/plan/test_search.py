"""Layouts of a run, and their order."""

from __future__ import annotations

from typing import Any

import pytest
from planned_runs import TINY, planned

from megatron_lpc.command_line import UserError
from megatron_lpc.config import with_options
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import Plan, make_plan
from megatron_lpc.plan.search import search

BIG: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 8192,
    "ffn_hidden_size": 28672,
    "num_attention_heads": 64,
    "num_query_groups": 8,
    "vocab_size": 1024,
}
"""3.4 billion parameters, of which a GPU of 80 GB does not hold all with gradients and optimizer state."""


def layout(plan: Plan) -> tuple[int, int, int]:
    parallel = plan.config.parallel
    return parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, plan.data_parallel


def rate(plan: Plan) -> float:
    assert plan.speed is not None
    return plan.speed.pairs_per_second


def test_every_layout_that_the_rules_allow():
    found = search(planned(4, TINY), PlanOptions(world_size=4))
    # TP 4 does not divide two query groups.
    assert {layout(plan) for plan in found} == {(1, 1, 4), (1, 2, 2), (1, 4, 1), (2, 1, 2), (2, 2, 1)}
    rates = [rate(plan) for plan in found]
    assert rates == sorted(rates, reverse=True)
    assert all(plan.config.parallel.sequence_parallel == (layout(plan)[0] > 1) for plan in found)


def test_only_what_fits_with_the_fastest_options():
    run = planned(16, BIG, max_length=4096, max_position_embeddings=4096)
    options = PlanOptions(world_size=16)
    found = search(run, options)
    assert all(plan.fits for plan in found)
    assert (16, 1, 1) not in {layout(plan) for plan in found}, "beyond the GPUs that NVLink connects"
    assert (1, 1, 16) not in {layout(plan) for plan in found}, "20 bytes per parameter, and activations"
    for plan in found:
        for size in (1, 2):
            other = make_plan(with_options(plan.config, micro_batch_size=size), options)
            assert not other.fits or rate(other) <= rate(plan)


def test_interleaving_is_kept_where_it_divides():
    interleaved = {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2}
    run = planned(4, BIG, **interleaved, micro_batch_size=1, global_batch_size=8)
    chunks = {layout(plan): plan.schedule.chunks for plan in search(run, PlanOptions(world_size=4))}
    assert chunks[1, 2, 2] == 2, "it is faster"
    assert chunks[1, 4, 1] == 1


def test_nothing_fits():
    assert search(planned(1, BIG | {"num_layers": 8}), PlanOptions(world_size=1)) == []


def test_what_cannot_be_ranked():
    with pytest.raises(UserError, match="--search: ranks by time"):
        search(planned(4, TINY, device="cpu"), PlanOptions(world_size=4))
    with pytest.raises(UserError, match="--train-data: is empty"):
        search(with_options(planned(4, TINY), train_data=[]), PlanOptions(world_size=4))
