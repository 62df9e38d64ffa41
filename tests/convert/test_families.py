"""Every setting of a config.json becomes an option and is written back, or is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_lpc.config import ModelConfig, canonical, layer_windows, layers_without_rope
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.families import FAMILIES, REFUSED, find_family
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.model_options import differing_options
from megatron_lpc.convert.settings import fit_family, read_model, write_settings
from megatron_lpc.convert.weights import QKV

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_names_every_tensor(tmp_path: Path, name: str) -> None:
    """The names in files: transformers 5 fuses experts when it reads them."""
    config = SIZES | {"model_type": name}
    family, model = read_model(config)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(tmp_path)
    wanted = {key: info.shape for key, info in HFFolder(tmp_path).tensors.items()}
    found = {
        part: shape
        for weight in family.all_weights(model)
        for place in weight.places(model)
        for part, shape in zip(weight.hf_names(place), weight.hf_shapes(model), strict=True)
    }
    assert found == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_join_undoes_split(name: str) -> None:
    family, model = read_model(SIZES | {"model_type": name})
    for weight in family.all_weights(model):
        tensor = torch.randn(weight.shape(model), generator=torch.Generator().manual_seed(0))
        parts = weight.transform.split(model, tensor)
        assert torch.equal(weight.transform.join(model, parts), tensor)
        assert len(parts) == len(weight.hf)


def test_qkv_is_interleaved_by_group() -> None:
    model = ModelConfig(num_attention_heads=4, num_query_groups=2, kv_channels=1)
    q, k, v = torch.arange(4), torch.arange(10, 12), torch.arange(20, 22)
    assert QKV.join(model, [q, k, v]).tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


@pytest.mark.parametrize("name", FAMILIES)
def test_options_come_back(name: str) -> None:
    variants = [
        {},
        {"rope_theta": 5e5, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    ]
    if FAMILIES[name].has_partial_rotary_factor:
        variants += [{"partial_rotary_factor": 0.5}]
    else:
        variants += [
            {"tie_word_embeddings": False, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            {"rope_scaling": {"rope_type": "llama3", "factor": 32.0, **LLAMA3}},
        ]
    if FAMILIES[name].has_no_rope_layers:
        variants += [{"no_rope_layers": [1, 0]}, {"no_rope_layers": [0, 1, 1]}]
    if FAMILIES[name].has_norm_topk_prob:
        variants += [{"norm_topk_prob": True}, {"num_experts_per_tok": 1}]
    if "query_pre_attn_scalar" in FAMILIES[name].own_settings:
        variants += [{"query_pre_attn_scalar": 7, "final_logit_softcapping": 3.0}]
    if "attn_logit_softcapping" in FAMILIES[name].own_settings:
        variants += [{"attn_logit_softcapping": None}]
    if FAMILIES[name].has_local_rope:
        variants += [{"rope_local_base_freq": 77.0}]
    if FAMILIES[name].window == "by layer":
        windows = {"sliding_window": 7, "use_sliding_window": True}
        some, all_layers = ["sliding_attention", "full_attention"], ["sliding_attention"] * 2
        variants += [windows | {"layer_types": some}, windows | {"layer_types": all_layers}, {"sliding_window": None}]
    if FAMILIES[name].window == "all layers":
        variants += [{"sliding_window": 7}, {"sliding_window": None}]
    seen = []
    for variant in variants:
        _, model = read_model(SIZES | {"model_type": name} | variant)
        family, again = read_model(write_settings(FAMILIES[name], model))
        assert again == model
        assert family.model_type == name
        assert model not in seen or not variant or variant == {"sliding_window": None}
        seen.append(model)


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_fields_of_transformers_5() -> None:
    _, model = read_model(
        SIZES
        | {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, **LLAMA3}}
    )
    assert (model.rotary_base, model.use_rope_scaling, model.rope_scaling_factor) == (500000, True, 8.0)


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (None, [9, 9, 9, 9]),
        ([2], [9, None, 9, None]),
        ([1, 0, 1, 0], [9, None, 9, None]),
        ([1, 1, 0, 1], [9, 9, None, 9]),
        ([3], [9, 9, None, 9]),
        ([0, 1, 1, 1], [None, 9, 9, 9]),
        ([1], [None] * 4),
    ],
)
def test_windows_of_layers(pattern: list[int] | None, windows: list[int | None]) -> None:
    model = ModelConfig(num_layers=4, sliding_window=9, window_attn_skip_freq=pattern, no_rope_freq=pattern)
    assert layer_windows(model) == windows
    assert layer_windows(canonical(model)) == windows
    assert layers_without_rope(canonical(model)) == layers_without_rope(model)


def test_equal_patterns_are_no_difference() -> None:
    spelled_out, short = ([0, 1, 0, 1], [1, 0, 1, 0]), ([2], [2])
    made = [
        ModelConfig(num_layers=4, sliding_window=9, no_rope_freq=without, window_attn_skip_freq=window)
        for without, window in (spelled_out, short)
    ]
    assert differing_options(*made) == []
    assert differing_options(made[0], replace(made[1], no_rope_freq=[4])) == ["no_rope_freq"]


def test_old_gemma_activation() -> None:
    _, model = read_model(SIZES | {"model_type": "gemma", "hidden_act": "gelu"})
    assert model.activation == "geglu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gpt2"},
            f"model type 'gpt2' cannot be converted; known types: {', '.join(FAMILIES)}",
        ),
        ({"model_type": None}, "model type 'None' cannot be converted"),
        ({"attention_bias": True}, "attention_bias is True; megatron-core's llama needs False"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu; megatron-core's llama needs silu"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"rope_theta": 0}, "rope_theta 0 is not a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta inf is not a positive number"),
        ({"rope_theta": True}, "rope_theta True is not a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' has no counterpart"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' has no counterpart"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3, "high_freq_factor": 2.0}},
            "high_freq_factor is 2.0",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3, "low_freq_factor": 2.0}},
            "low_freq_factor is 2.0",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    **LLAMA3,
                    "original_max_position_embeddings": 4096,
                }
            },
            "original_max_position_embeddings is 4096",
        ),
        ({"model_type": "phi3", "rope_scaling": LONGROPE}, "rope type 'longrope' has no counterpart"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "chunked_attention"],
            },
            "layer_types has chunked_attention",
        ),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True"),
        (
            {"model_type": "gemma", "hidden_act": "relu"},
            "hidden_act is relu; megatron-core's gemma needs gelu_pytorch_tanh",
        ),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": LINEAR}},
            "rope type 'linear' in layers with a sliding window is not supported",
        ),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
        ({"model_type": "mixtral", "num_experts_per_tok": 1}, "num_experts_per_tok is 1"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1]}, "mlp_only_layers is [1]"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ({"model_type": "qwen3_moe", "use_sliding_window": True}, "use_sliding_window is True"),
        ({"num_attention_heads": "many"}, "transformers refuses it"),
        ({"torch_dtype": "float17"}, "transformers refuses it: AttributeError"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    with pytest.raises(ConversionError, match="config") as error:
        read_model(SIZES | {"model_type": "llama"} | change)
    assert message in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_relatives_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConversionError) as error:
        find_family(name)
    assert REFUSED[name] in str(error.value)


def test_options_without_a_config_find_their_family() -> None:
    base = ModelConfig(vocab_size=101)
    assert fit_family(replace(base, no_rope_freq=[2]))[0].model_type == "smollm3"
    assert fit_family(replace(base, rotary_percent=0.5))[0].model_type == "phi3"
    output_norms = replace(base, norm_position="output", qk_layernorm=True, qk_layernorm_scope="projection")
    assert fit_family(output_norms)[0].model_type == "olmo2"
    assert fit_family(base)[0].model_type == "llama"
    assert fit_family(replace(base, sliding_window=9))[0].model_type == "mistral"
    assert fit_family(replace(base, add_qkv_bias=True))[0].model_type == "qwen2"
    assert fit_family(replace(base, qk_layernorm=True, sliding_window=9))[0].model_type == "qwen3"
    gemma = replace(base, apply_layernorm_1p=True, activation="geglu", scale_embeddings=True)
    assert fit_family(gemma)[0].model_type == "gemma"
    by_layer = replace(gemma, norm_position="both", sliding_window=9, window_attn_skip_freq=[2])
    assert fit_family(replace(by_layer, attn_logit_softcapping=50.0))[0].model_type == "gemma2"
    assert fit_family(replace(by_layer, qk_layernorm=True, rope_local_base_freq=100))[0].model_type == "gemma3_text"
    experts = replace(base, num_experts=4, sliding_window=9)
    assert fit_family(experts)[0].model_type == "mixtral"
    assert (
        fit_family(replace(base, num_experts=4, moe_router_pre_softmax=True, qk_layernorm=True))[0].model_type
        == "qwen3_moe"
    )
    with pytest.raises(ConversionError, match="none combines --num-experts, --add-qkv-bias"):
        fit_family(replace(experts, add_qkv_bias=True))
    with pytest.raises(ConversionError, match="none combines --add-qkv-bias, --qk-layernorm"):
        fit_family(replace(base, qk_layernorm=True, add_qkv_bias=True))


def test_longest_sequence_is_no_difference() -> None:
    assert differing_options(ModelConfig(max_position_embeddings=8), ModelConfig(num_query_groups=8)) == []
