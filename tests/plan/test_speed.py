"""FLOPs and time."""

from __future__ import annotations

from typing import Any

import pytest
from planned_runs import TINY, planned, split

from megatron_lpc.command_line import UserError
from megatron_lpc.config import Config
from megatron_lpc.plan.compute import computed_flops, demanded_flops
from megatron_lpc.plan.lm_head import lm_head_sizes
from megatron_lpc.plan.micro_batch import longest_lengths, micro_batch
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import Plan, make_plan

MODEL = TINY | {"untie_embeddings_and_output_weights": True}
TOKENS, ATTENDED, LOSS_TOKENS = 2 * 128, 2 * 128 * 129 // 2, 2 * 64
LAYER = 32 * 64 * 2 + 32 * 32 * 2 + 3 * 32 * 48
"""Elements of a layer's matrices."""
LAYERS = 4 * 6 * (LAYER * TOKENS + 2 * 64 * ATTENDED)
LM_HEAD = 6 * 32 * 500 * LOSS_TOKENS
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def run(world_size: int = 1, **options: Any) -> Config:
    base = {"latent_mode": "none", "loss_type": "simpo", "micro_batch_size": 1, "global_batch_size": 8}
    return planned(world_size, MODEL, **base | {"max_length": 128, "max_prompt_length": 64} | options)


def flops_of(config: Config):
    batch = micro_batch(config, longest_lengths(config), "cuda")
    return computed_flops(config, batch, lm_head_sizes(config, batch, "cuda"))


def plan(config: Config, world_size: int = 1, **options: Any) -> Plan:
    return make_plan(config, PlanOptions(world_size=world_size, **options))


def test_what_devices_compute():
    plain = flops_of(run())
    assert plain.layers == pytest.approx(LAYERS)
    assert plain.lm_head == pytest.approx(LM_HEAD)
    assert plain.latent_head == plain.reference_layers == plain.reference_head == 0
    assert flops_of(run(**FULL)).layers == pytest.approx(LAYERS * 4 / 3)
    block = FULL | {"recompute_method": "block", "recompute_num_layers": 3}
    assert flops_of(run(**block)).layers == pytest.approx(LAYERS * (1 + 3 / 4 / 3))
    attention = 4 * 2 * 2 * 64 * ATTENDED
    assert flops_of(run(recompute_granularity="selective")).layers == pytest.approx(LAYERS + attention)
    assert flops_of(run(logps_algorithm="recompute")).lm_head == pytest.approx(LM_HEAD * 8 / 6)
    reference = flops_of(run(loss_type="dpo"))
    assert reference.layers == pytest.approx(LAYERS)
    assert reference.reference_layers == pytest.approx(LAYERS / 3)
    assert reference.reference_head == pytest.approx(LM_HEAD / 3)


def test_what_the_objective_demands_is_neither_recomputed_nor_padded():
    config = run(**FULL)
    batch = micro_batch(config, longest_lengths(config), "cuda")
    assert demanded_flops(config, batch) == pytest.approx(8 * (LAYERS + LM_HEAD))


def test_stages_share_what_is_computed():
    config = run(8, latent_mode="lpc", **split(2, 4))
    flops = flops_of(config)
    stages = [part.stage for part in plan(config, 8).stages]
    total = sum(stage.stages * 2 * flops.of_rank(stage, 4, 2) for stage in stages)
    assert total == pytest.approx(flops.layers + flops.lm_head + 2 * flops.latent_head)
    assert flops.latent_head > 0


def test_one_gpu_reaches_what_is_assumed():
    predicted = plan(run(), gpu="A100", efficiency=0.25, bandwidth_efficiency=0.5)
    speed = predicted.speed
    assert speed is not None
    assert speed.compute == pytest.approx(8 * (LAYERS + LM_HEAD) / (0.25 * 312e12))
    stage = predicted.stages[0].stage
    assert speed.update == pytest.approx((2 * 12 + 4 + 2) * stage.parameters / (0.5 * 2039e9))
    assert speed.seconds == pytest.approx(speed.compute + speed.update)
    assert speed.mfu == pytest.approx(0.25 * speed.compute / speed.seconds)
    assert speed.pairs_per_second == pytest.approx(8 / speed.seconds)


def test_a_pipeline_waits():
    speed = plan(run(2, pipeline_model_parallel_size=2), 2).speed
    assert speed is not None
    # The last stage has the LM head and is slower; the first is passed once more.
    assert speed.bubble == pytest.approx(plan_of_first_stage(), rel=1e-6)
    assert speed.pipeline_parallel > 0 == speed.tensor_parallel


def plan_of_first_stage() -> float:
    """Seconds of a micro-batch in the first of two stages: half of the layers, and its exchanges."""
    exchange = 2 * 2 * 128 * 32 * 2 / (0.8 * 450e9)
    return LAYERS / 2 / (0.5 * 989.4e12) + exchange


def test_overlap_hides_data_parallel_collectives():
    """Gradients behind the backward pass of a micro-batch, two thirds of it; parameters behind the forward pass."""
    shared = {"use_distributed_optimizer": True}
    gradients, both = shared | {"overlap_grad_reduce": True}, {"overlap_param_gather": True}
    plans = [plan(run(2, **options), 2) for options in (shared, gradients, gradients | both)]
    none, some, most = (predicted.speed for predicted in plans)
    assert none is not None
    assert some is not None
    assert most is not None
    stage, bandwidth = plans[0].stages[0].stage, 0.8 * 450e9
    summed, gathered = stage.gradient_bytes / 2 / bandwidth, stage.weight_bytes / 2 / bandwidth
    of_micro_batch = none.compute / 4
    assert none.data_parallel == pytest.approx(summed + gathered)
    assert some.data_parallel == pytest.approx(max(0, summed - 2 / 3 * of_micro_batch) + gathered)
    hidden = max(0, summed - 2 / 3 * of_micro_batch) + max(0, gathered - of_micro_batch / 3)
    assert most.data_parallel == pytest.approx(hidden)


def test_time_is_that_of_mean_pairs_and_memory_of_the_longest():
    config = run(max_length=512, max_prompt_length=256)
    longest, mean = plan(config), plan(config, prompt_length=64, response_length=64)
    assert longest.speed is not None
    assert mean.speed is not None
    assert mean.speed.compute == pytest.approx(8 * (LAYERS + LM_HEAD) / (0.5 * 989.4e12))
    assert mean.speed.seconds < longest.speed.seconds
    assert mean.peak == longest.peak
    with pytest.raises(UserError, match="exceed --max-length 512"):
        plan(config, prompt_length=500)


def test_no_time_without_a_published_peak():
    assert plan(run(bf16=False)).speed is None
    assert plan(run(device="cpu")).speed is None
