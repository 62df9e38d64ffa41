"""What ranks send, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from planned_runs import TINY, planned

from megatron_lpc.plan.communication import links
from megatron_lpc.plan.gpus import GPUS
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import Plan, make_plan

MODEL = TINY | {"untie_embeddings_and_output_weights": True}
LAYOUT = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
HIDDEN = 2 * 128 * 32 * 2
"""Bytes of the hidden states of a micro-batch: two sequences of 128 tokens."""


def plan(**options: Any) -> Plan:
    """TP 2 x PP 2 x DP 2: two layers and two micro-batches per rank."""
    base = {
        "latent_mode": "none",
        "loss_type": "simpo",
        "micro_batch_size": 1,
        "global_batch_size": 4,
        "max_length": 128,
        "max_prompt_length": 64,
    }
    return make_plan(planned(8, MODEL, **LAYOUT | base | options), PlanOptions(world_size=8))


def test_tensor_parallel_ranks():
    first, last = plan().stages
    # Two all-reduces of each layer, forward and backward, of which a rank sends 2 (2 - 1) / 2 each; 2 micro-batches.
    of_layers = 2 * 2 * (2 + 2) * HIDDEN
    assert first.sent["TP"] == of_layers + 2 * HIDDEN, "and that of the embedding"
    loss_tokens = 2 * 64
    assert last.sent["TP"] == of_layers + 2 * loss_tokens * (3 * 4 + 32 * 2), "of the LM head"


def test_sequence_parallelism_gathers_again_in_the_backward_pass():
    first, last = plan(sequence_parallel=True).stages
    of_layers = 2 * 2 * (2 + 2 + 1) * HIDDEN  # Two gathers more, of half the bytes each.
    assert first.sent["TP"] == of_layers + 2 * HIDDEN // 2
    assert last.sent["TP"] == of_layers + 2 * HIDDEN // 2 + 2 * 128 * (3 * 4 + 32 * 2)


def test_recomputation_repeats_the_forward_pass():
    recomputed = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    first, _ = plan(**recomputed).stages
    assert first.sent["TP"] == 2 * 2 * (2 + 2 + 2) * HIDDEN + 2 * HIDDEN


def test_experts_exchange_each_token_as_often_as_it_has_some():
    first, _ = plan(num_experts=4, sequence_parallel=True).stages
    # Attention 2 + 1 half pairs more; experts 2 x 2 pairs.
    assert first.sent["TP"] == 2 * 2 * (1 + 2 + 1 + 2) * HIDDEN + 2 * 2 * HIDDEN // 2 + HIDDEN


def test_pipeline_stages():
    assert plan().stages[0].sent["PP"] == 2 * 2 * HIDDEN, "hidden states and their gradient"
    assert plan(sequence_parallel=True).stages[0].sent["PP"] == 2 * HIDDEN
    assert plan(loss_type="dpo").stages[0].sent["PP"] == 2 * 3 * HIDDEN, "and those of the reference"
    assert plan(num_virtual_stages_per_pipeline_rank=2).stages[0].sent["PP"] == 4 * 2 * HIDDEN


def test_data_parallel_ranks():
    first = plan().stages[0]
    assert first.sent["DP"] == 4 * first.stage.parameters, "an all-reduce of fp32 gradients"
    shared = plan(use_distributed_optimizer=True).stages[0]
    assert shared.sent["DP"] == (shared.stage.gradient_bytes + shared.stage.weight_bytes) / 2
    assert first.sent["CP"] == first.sent["EP"] == 0


def test_groups_within_a_node_use_nvlink():
    gpu = GPUS["H100"]
    within = links(gpu, tensor=4, copies=2, stages=1)
    assert within.tensor == within.data == within.pipeline == 450e9
    across = links(gpu, tensor=4, copies=4, stages=2)
    assert across.tensor == 450e9
    assert across.data == 2 * 50e9, "two ranks of a group are in one node, each with its adapter"
    assert across.pipeline == 50e9
    assert links(gpu, tensor=1, copies=64, stages=1).data == 8 * 50e9
    assert links(GPUS["GB200"], tensor=8, copies=9, stages=1).data == 900e9


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_a_peak(name):
    assert GPUS[name].peak_tflops > 300
