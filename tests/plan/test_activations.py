"""The formulas of activations, against what autograd saves in the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from planned_runs import split

from megatron_lpc.config import Config, DataConfig, ModelConfig, ParallelConfig, with_options
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.model import build_model
from megatron_lpc.plan.activations import (
    Activations,
    LayerSizes,
    attention_bytes,
    boundary_bytes,
    chunk_activations,
    layer_bytes,
    layer_sizes,
    mlp_bytes,
    norms_bytes,
)
from megatron_lpc.plan.micro_batch import PairLengths, micro_batch
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed

LENGTHS = PairLengths(16, 24)
MODEL = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 176,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 512,
}
BASE = Config(
    model=ModelConfig(**MODEL),
    data=DataConfig(train_data=["x"], tokenizer_model="x", max_length=40, max_prompt_length=16),
    parallel=ParallelConfig(device="cpu"),
)
CASES = {
    "padded": {"micro_batch_size": 2},
    "bf16": {"micro_batch_size": 2, "bf16": True},
    "shared": {"micro_batch_size": 1, "share_prompt": True},
    "packed": {"pack_to": 160},
    "qk norm": {"micro_batch_size": 2, "qk_layernorm": True},
    "output norms": {"micro_batch_size": 2, "norm_position": "output"},
    "both norms": {"micro_batch_size": 2, "norm_position": "both"},
    "zero-centred norms": {"micro_batch_size": 2, "bf16": True, "apply_layernorm_1p": True},
    "wide heads": {"micro_batch_size": 2, "kv_channels": 32, "rotary_percent": 0.5},
    "experts": {"micro_batch_size": 2, "num_experts": 4},
}


@pytest.fixture(scope="module")
def context() -> Iterator[RunContext]:
    yield start_distributed(BASE)
    stop_distributed()


def saved_by_a_layer(context: RunContext, config: Config) -> int:
    """Bytes that autograd keeps of one layer: those of two layers without those of one."""
    two, one = (saved(context, with_options(config, num_layers=layers)) for layers in (2, 1))
    return two - one


def saved(context: RunContext, config: Config) -> int:
    (chunk,) = build_model(config, context.platform, context.groups, config.latent)
    model = getattr(chunk, "module", chunk)
    data = config.data
    count = micro_batch(config, LENGTHS, "cpu").pairs
    pairs = [EncodedPair([1] * LENGTHS.prompt, [2] * LENGTHS.response, [3] * LENGTHS.response)] * count
    batch = collate(pairs, range(count), range(count), pad_id=0, share_prompt=data.share_prompt, pack_to=data.pack_to)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # Kept, so that no other one gets its address.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden_states(batch.tokens, batch.packing_layout)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("case", CASES)
def test_a_layer_keeps_what_the_formulas_say(context, case):
    config = with_options(BASE, **{"bf16": False} | CASES[case])
    predicted = layer_bytes(layer_sizes(config, "cpu"), micro_batch(config, LENGTHS, "cpu"))
    tolerance = 1e-3 if case == "zero-centred norms" else 0  # Not counted: their weights, to which 1 was added.
    assert predicted == pytest.approx(saved_by_a_layer(context, config), rel=tolerance, abs=0)


def gpu_sizes(**changes: object) -> LayerSizes:
    sizes = {"hidden_size": 64, "heads": 4, "groups": 2, "head_width": 16, "rotated": 16, "ffn_size": 176}
    return LayerSizes(**sizes | changes)


def test_by_hand_on_a_gpu():
    """32 sequences of 4096 tokens in bf16 and with fused norms: 2 bytes a number."""
    batch = micro_batch(with_options(BASE, micro_batch_size=16), PairLengths(1024, 3072), "cuda")
    tokens = 32 * 4096
    sizes = gpu_sizes()
    assert norms_bytes(sizes, batch) == tokens * (2 * 4 * 64 + 2 * 4)
    tables = 4 * 16 * 4096
    assert attention_bytes(sizes, batch) == tokens * (2 * 3 * (4 + 2) * 16 + 4 * 4) + 2 * tables
    assert mlp_bytes(sizes, batch) == tokens * 2 * 5 * 176
    assert mlp_bytes(gpu_sizes(fused_activation=True), batch) == tokens * 2 * 3 * 176
    # Sequence parallelism splits what tensor parallelism alone does not.
    assert norms_bytes(gpu_sizes(sequence_shards=4), batch) == norms_bytes(sizes, batch) // 4
    assert boundary_bytes(gpu_sizes(sequence_shards=4), batch) == tokens * 64 * 2 // 4


def test_recomputation():
    batch = micro_batch(BASE, LENGTHS, "cuda")
    sizes = gpu_sizes()
    layer, boundary = layer_bytes(sizes, batch), boundary_bytes(sizes, batch)

    def of(granularity: str | None, method: str | None = None, layers: int | None = None) -> Activations:
        options = {
            "recompute_granularity": granularity,
            "recompute_method": method,
            "recompute_num_layers": layers,
        }
        return chunk_activations(with_options(BASE, **options), sizes, batch, 8)

    assert of(None) == Activations(8 * layer, 0)
    assert of("full", "uniform", 1) == Activations(8 * boundary, layer)
    assert of("full", "uniform", 4) == Activations(2 * boundary, 4 * layer)
    assert of("full", "block", 3) == Activations(3 * boundary + 5 * layer, layer)
    statistics = batch.tokens * 4 * 4
    assert of("selective") == Activations(8 * (layer - statistics), statistics)


def test_ranks_share_heads_and_mlp():
    config = with_options(BASE, **split(2, 1))
    sizes = layer_sizes(config, "cuda")
    assert (sizes.heads, sizes.groups, sizes.ffn_size, sizes.sequence_shards) == (2, 1, 88, 2)
