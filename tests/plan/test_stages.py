"""What is counted on models built on the meta device."""

from __future__ import annotations

import pytest
from planned_runs import TINY, planned, split

from megatron_lpc.config.latent_head_sizes import latent_head_sizes
from megatron_lpc.plan.stages import build_stage, distinct_stages

# Of the published checkpoints.
PARAMETERS = {
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "qwen3-8b": 8_190_735_360,
    "mixtral-8x7b": 46_702_792_704,
}
LAYOUTS = {1: split(1, 1), 64: split(8, 2), 512: split(8, 4)}
LAYER = 32 * 64 * 2 + 32 * 32 * 2 + 3 * 32 * 48 + 2 * 32  # Query and output, key and value, MLP, two norms.


@pytest.mark.parametrize("world_size", LAYOUTS)
@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_are_those_of_the_published_model(model, world_size):
    config = planned(world_size, model, **LAYOUTS[world_size])
    stages = distinct_stages(config, world_size)
    assert sum(stage.stages for stage in stages) == config.parallel.pipeline_model_parallel_size
    assert sum(stage.stages * stage.model_parameters for stage in stages) == PARAMETERS[model]
    head = latent_head_sizes(config.latent, config.model.hidden_size).num_parameters
    assert [stage.latent_parameters for stage in stages] == [0] * (len(stages) - 1) + [head]


def test_every_stage_of_512_ranks_is_built():
    """The whole set-up, gradient buffers and optimizer included, of each of 8 stages."""
    config = planned(512, "llama3-70b", **split(8, 8))
    stages = [build_stage(config, 512, rank) for rank in range(8)]
    of_layers = {stage.parameters for stage in stages[1:-1]}
    assert len(of_layers) == 1, "the stages between are alike, as `distinct_stages` takes them to be"
    assert [stage.layers for stage in stages] == [10] * 8
    assert [stage.is_first for stage in stages] == [True] + 7 * [False]
    assert [stage.is_last for stage in stages] == 7 * [False] + [True]
    embedding = 128256 * 8192 // 8
    (layers,) = of_layers
    assert stages[0].parameters == layers + embedding
    assert stages[-1].parameters == layers + embedding + 8192 + stages[-1].latent_parameters


def test_bytes_of_a_rank_without_distributed_optimizer():
    stage = build_stage(planned(2, TINY, tensor_model_parallel_size=2, latent_mode="none"), 2, 0)
    parameters = 4 * (LAYER - 64) // 2 + 4 * 64 + 512 * 32 // 2 + 32  # The norms are on both ranks.
    assert stage.parameters == stage.trained_parameters == parameters
    assert stage.weight_bytes == 2 * parameters
    assert stage.gradient_bytes == 4 * parameters
    assert stage.optimizer_bytes == 12 * parameters
    assert stage.largest_weight_bytes == 2 * (128 * 32) // 2, "queries, keys and values"
    assert stage.model_parameters == 4 * LAYER + 500 * 32 + 32, "the vocabulary without its padding"


def test_the_distributed_optimizer_is_shared_by_data_parallel_ranks():
    options = {"use_distributed_optimizer": True, "latent_mode": "none", "global_batch_size": 32}
    whole, shared = (build_stage(planned(n, TINY, **options), n, 0) for n in (1, 4))
    assert shared.parameters == whole.parameters
    assert shared.copies == 4
    # But for padding between parameters.
    assert shared.optimizer_bytes == pytest.approx(whole.optimizer_bytes / 4, rel=0.01)


def test_a_tied_embedding_on_two_stages_counts_once():
    config = planned(2, TINY, pipeline_model_parallel_size=2, latent_mode="none")
    stages = distinct_stages(config, 2)
    assert sum(stage.parameters for stage in stages) == 4 * LAYER + 2 * 512 * 32 + 32
    assert sum(stage.model_parameters for stage in stages) == 4 * LAYER + 500 * 32 + 32


def test_fp32_has_no_main_parameters():
    stage = build_stage(planned(1, TINY, bf16=False, latent_mode="none"), 1, 0)
    assert stage.weight_bytes == 4 * stage.parameters
    assert stage.optimizer_bytes == 8 * stage.parameters


def test_a_frozen_backbone_has_gradients_and_optimizer_for_the_head_only():
    stage = build_stage(planned(1, TINY, freeze_backbone=True), 1, 0)
    assert stage.trained_parameters == stage.latent_parameters > 0
    assert stage.gradient_bytes == 4 * stage.latent_parameters
    assert stage.optimizer_bytes == 12 * stage.latent_parameters
