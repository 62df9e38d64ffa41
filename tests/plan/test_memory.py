"""Memory by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned_runs import TINY, planned, split

from megatron_lpc.config import Config
from megatron_lpc.plan.activations import layer_bytes, layer_sizes
from megatron_lpc.plan.lm_head import (
    LMHeadSizes,
    embedding_workspace,
    gradient_workspace,
    latents_bytes,
    lm_head_sizes,
    logits_bytes,
    reference_workspace,
    scoring_workspace,
)
from megatron_lpc.plan.micro_batch import longest_lengths, micro_batch
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import Plan, make_plan

HEAD = LMHeadSizes(
    loss_tokens=600,
    tokens_of_pair=200,
    vocab=1000,
    hidden_size=64,
    pairs=3,
    latents=0,
    chunk_size=450,
    chunks_in_flight=1,
    itemsize=2,
    adds_in_place=False,
    algorithm="pairwise",
    is_tied=False,
)


def test_logits_of_whole_pairs():
    assert logits_bytes(HEAD) == 400 * 1000 * 2
    assert logits_bytes(replace(HEAD, chunks_in_flight=2)) == 2 * 400 * 1000 * 2
    assert logits_bytes(replace(HEAD, algorithm="recompute", chunks_in_flight=2)) == 450 * 1000 * 2
    assert logits_bytes(replace(HEAD, chunk_size=100)) == 200 * 1000 * 2, "a pair that exceeds a chunk is one"
    assert logits_bytes(replace(HEAD, chunk_size=10_000)) == 600 * 1000 * 2


def test_latents():
    assert latents_bytes(HEAD) == 0
    assert latents_bytes(replace(HEAD, latents=1)) == 2 * 3 * 1000 * 4
    assert latents_bytes(replace(HEAD, latents=1, adds_in_place=True)) == 0
    assert latents_bytes(replace(HEAD, latents=64)) == 2 * 64 * 1000 * 4, "codes are shared by pairs"


def test_workspace_of_the_lm_head():
    hidden = 600 * 64 * 2
    assert scoring_workspace(HEAD) == 3 * hidden + logits_bytes(HEAD)
    assert reference_workspace(HEAD, on_cuda=True) == hidden
    assert reference_workspace(HEAD, on_cuda=False) == hidden + logits_bytes(HEAD)
    assert gradient_workspace(HEAD, tokens=2000) == (600 + 2 * 2000 + 1000) * 64 * 2
    assert embedding_workspace(HEAD) == 1000 * 64 * 2
    assert embedding_workspace(replace(HEAD, is_tied=True)) == 2 * 1000 * 64 * 2


@pytest.mark.parametrize(
    ("options", "algorithm"),
    [
        ({}, "pairwise"),
        ({"logps_chunk_size": 100}, "recompute"),
        ({"logps_chunk_size": 100, "logps_algorithm": "pairwise"}, "pairwise"),
        ({"freeze_backbone": True}, "frozen"),
    ],
)
def test_the_algorithm_is_that_of_training(options, algorithm):
    config = planned(1, TINY, max_length=200, max_prompt_length=100, **options)
    batch = micro_batch(config, longest_lengths(config), "cuda")
    assert lm_head_sizes(config, batch, "cuda").algorithm == algorithm


def test_ranks_split_the_vocabulary():
    config = planned(2, TINY, **split(2, 1))
    head = lm_head_sizes(config, micro_batch(config, longest_lengths(config), "cuda"), "cuda")
    assert (head.vocab, head.chunks_in_flight, head.chunk_size) == (512 // 2, 2, 4096)


def plan(config: Config, world_size: int = 1) -> Plan:
    return make_plan(config, PlanOptions(world_size=world_size))


def test_resident_memory_of_one_gpu():
    config = planned(1, TINY, latent_mode="none", micro_batch_size=1, loss_type="simpo")
    (only,) = plan(config).stages
    parameters = only.stage.parameters
    memory = only.memory
    assert memory.resident == (2 + 4 + 12) * parameters
    assert memory.reference == memory.reference_pass == memory.save == memory.host == memory.update == 0
    batch = micro_batch(config, longest_lengths(config), "cuda")
    layers = 4 * layer_bytes(layer_sizes(config, "cuda"), batch)
    assert memory.activations == layers + 2 * batch.tokens * 32 * 2, "and the last norm"
    assert memory.peak == memory.resident + memory.activations + memory.workspace
    assert memory.lm_head <= memory.workspace


def test_where_the_reference_is():
    online, offloaded, precomputed = (
        plan(planned(1, TINY, **options)).stages[0].memory
        for options in (
            {},
            {"reference_offload": True},
            {"reference": "precomputed", "reference_cache": "folder"},
        )
    )
    weights = online.weights
    assert 0 < online.reference < weights, "a reference has no LPC head"
    assert offloaded.reference == 0
    assert offloaded.host == online.reference
    assert offloaded.reference_pass == online.reference_pass + online.reference
    assert precomputed.reference == precomputed.reference_pass == precomputed.host == 0


def test_stages_of_a_pipeline():
    config = planned(
        4, TINY, pipeline_model_parallel_size=4, latent_mode="none", untie_embeddings_and_output_weights=True
    )
    first, between, last = plan(config, 4).stages
    assert (between.stage.stages, last.stage.first_rank) == (2, 3)
    layer = layer_bytes(layer_sizes(config, "cuda"), micro_batch(config, longest_lengths(config), "cuda"))
    assert first.memory.activations == 4 * layer
    assert between.memory.activations == 3 * layer
    assert last.memory.activations > layer, "the last norm"
    assert first.memory.lm_head == between.memory.lm_head == 0 < last.memory.lm_head


def test_an_asynchronous_save_copies_this_ranks_share_to_the_host():
    options = {"use_distributed_optimizer": True, "save": "folder", "loss_type": "simpo"}
    written = plan(planned(2, TINY, **options, async_save=True), 2).stages[0]
    stage, memory = written.stage, written.memory
    assert memory.host == stage.weight_bytes // 2 + stage.optimizer_bytes
    assert memory.save == 0
    assert plan(planned(2, TINY, **options), 2).stages[0].memory.host == 0


def test_a_frozen_backbone_keeps_no_activations():
    memory = plan(planned(1, TINY, freeze_backbone=True)).stages[0].memory
    assert memory.activations == 0
    assert memory.reference == 0
    cached = plan(planned(1, TINY, freeze_backbone=True, cache_hidden_states="folder")).stages[0].memory
    assert cached.weights < memory.weights


def test_what_fits():
    run = planned(
        1, "llama3-8b", reference="precomputed", reference_cache="folder", max_length=1024, micro_batch_size=1
    )
    assert not plan(run).fits, "18 bytes per parameter of 8 billion are more than 80 GB"
    assert make_plan(run, PlanOptions(world_size=1, gpu="GB200")).fits
    assert not make_plan(run, PlanOptions(world_size=1, gpu="GB200", memory_share=0.5)).fits
