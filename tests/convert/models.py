"""Small random models of every family, as a user has them on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 5
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
MODELS: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama3": {"model_type": "llama", "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    "llama3.1": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama3.2": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3 | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama_linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW, "head_dim": 12},
    "mistral_open": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0},
    "qwen2_window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 0,
    },
    "qwen3": {"model_type": "qwen3", "rope_theta": 77.7, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_some_windows": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "smollm3_window": {
        "model_type": "smollm3",
        "no_rope_layers": [0, 1],
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
    },
    "phi3": {"model_type": "phi3", "sliding_window": WINDOW},
    "phi4": {"model_type": "phi3", "rope_theta": 250000.0, "partial_rotary_factor": 0.5, "sliding_window": None},
    "olmo2": {"model_type": "olmo2", "rope_theta": 500000.0},
    "gemma": {"model_type": "gemma", "head_dim": 16},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 10,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
        "sliding_window": WINDOW,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 10,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 77.7,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral_window": {
        "model_type": "mixtral",
        "num_local_experts": 3,
        "num_experts_per_tok": 3,
        "sliding_window": WINDOW,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS, "norm_topk_prob": True},
    "qwen3_moe_unnormed": {"model_type": "qwen3_moe", "head_dim": 16, **EXPERTS, "norm_topk_prob": False},
}


def make_model(
    folder: Path,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, Any] = MappingProxyType({}),
    **save: Any,
) -> Path:
    """Write a model with weights of which none is special.

    Norms are away from 1 and biases away from 0; otherwise swapped tensors would go unnoticed.
    """
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SIZES | MODELS[name] | dict(sizes)))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1)
    model.to(dtype).save_pretrained(folder, **save)
    # As a model of transformers 4 has it on the Hub: there `rope_theta` and `rope_scaling` are fields of their own.
    config = json.loads((folder / "config.json").read_text())
    if name.startswith("llama3"):
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def prompts() -> list[torch.Tensor]:
    """[1, S] tokens of several lengths, most beyond the window."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, SIZES["vocab_size"], (1, length), generator=generator) for length in (1, 4, 11, 32)]
