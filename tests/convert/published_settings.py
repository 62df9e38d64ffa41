"""Fields of config.json as published models have them, of several versions of transformers; values are narrowed."""

from __future__ import annotations

from typing import Any

WINDOW = 5
_NARROW: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 2,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_COMMON = {"initializer_range": 0.02, "use_cache": True, "hidden_act": "silu", "tie_word_embeddings": False}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}
_LLAMA3_IDS = {"bos_token_id": 128000, "eos_token_id": 128001}
_QWEN_IDS = {"bos_token_id": 151643, "eos_token_id": 151645}


def _sizes(*, heads: int = 32, groups: int = 8, vocab_size: int = 32000, positions: int = 32768) -> dict[str, Any]:
    return {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab_size,
        "max_position_embeddings": positions,
    }


def _llama(**fields: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        **_COMMON,
        **_IDS,
        **fields,
    }


def _mistral(**fields: Any) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "torch_dtype": "bfloat16",
        **_COMMON,
        **_IDS,
        **_sizes(),
        **fields,
    }


def _qwen2(**fields: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **_COMMON,
        **_QWEN_IDS,
        **_sizes(heads=28, groups=4, vocab_size=152064),
        **fields,
    }


def _qwen3(**fields: Any) -> dict[str, Any]:
    return {
        **_qwen2(sliding_window=None, rope_scaling=None, attention_bias=False, head_dim=128, max_window_layers=36),
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        **fields,
    }


def _qwen3_moe(**fields: Any) -> dict[str, Any]:
    return {
        **_qwen3(max_window_layers=48),
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        **fields,
    }


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


_PLAIN_ATTENTION = {"attention_bias": False, "attention_dropout": 0.0}
_LLAMA3 = {**_LLAMA3_IDS, **_sizes(vocab_size=128256), **_PLAIN_ATTENTION, "torch_dtype": "bfloat16"}
_LLAMA31 = {**_LLAMA3, "mlp_bias": False, "rope_theta": 500000.0}
_QWEN3_MOE_OF_5 = _qwen3_moe(
    rope_parameters={"rope_theta": 10000000, "rope_type": "default"},
    num_local_experts=128,
    pad_token_id=None,
    dtype="bfloat16",
)
for _old in ("num_experts", "rope_theta", "rope_scaling", "torch_dtype"):
    del _QWEN3_MOE_OF_5[_old]

PUBLISHED: dict[str, dict[str, Any]] = {
    # As transformers 4.31 wrote it, before `rope_theta` and `attention_bias` were fields.
    "Llama-2-7b": _llama(**_sizes(groups=32, positions=4096), torch_dtype="float16"),
    "Llama-3-8B": _llama(**_LLAMA3, rope_theta=500000.0),
    "Llama-3.1-8B": _llama(**_LLAMA31) | {"rope_scaling": _llama3_rope(8.0)},
    "Llama-3.1-8B-Instruct": _llama(**_LLAMA31)
    | {"rope_scaling": _llama3_rope(8.0), "eos_token_id": [128001, 128008, 128009]},
    "Llama-3.2-1B": _llama(**_LLAMA31)
    | {"rope_scaling": _llama3_rope(32.0), "head_dim": 64, "tie_word_embeddings": True},
    "Mistral-7B-v0.1": _mistral(),
    "Mistral-7B-v0.3": _mistral(
        attention_dropout=0.0, sliding_window=None, rope_theta=1000000.0, vocab_size=32768, head_dim=128
    ),
    "Mixtral-8x7B-v0.1": _mistral(
        model_type="mixtral",
        architectures=["MixtralForCausalLM"],
        attention_dropout=0.0,
        num_experts_per_tok=2,
        num_local_experts=8,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
        rope_theta=1000000.0,
        sliding_window=None,
    ),
    "Qwen1.5-7B": _qwen2(sliding_window=32768, bos_token_id=151643, eos_token_id=151643, num_key_value_heads=28),
    "Qwen2-0.5B": _qwen2(tie_word_embeddings=True, max_window_layers=24, vocab_size=151936),
    "Qwen2.5-7B": _qwen2(use_mrope=False, eos_token_id=151643),
    "Qwen2.5-7B-Instruct": _qwen2(),
    "Qwen3-0.6B": _qwen3(tie_word_embeddings=True, rope_theta=1000000, vocab_size=151936),
    "Qwen3-8B": _qwen3(),
    "Qwen3-30B-A3B": _qwen3_moe(),
    "Qwen3-30B-A3B, saved by transformers 5": _QWEN3_MOE_OF_5,
    # Two fields for the activation, of which the old one lies: the model was always trained with tanh-GELU.
    "gemma-2b": _llama(**_sizes(heads=8, groups=1, vocab_size=256000, positions=8192))
    | {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": "gelu",
        "hidden_activation": None,
        "head_dim": 256,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        **_PLAIN_ATTENTION,
    },
    "DeepSeek-R1-Distill-Llama-8B": _llama(**_LLAMA31) | {"rope_scaling": _llama3_rope(8.0)},
    "DeepSeek-R1-Distill-Qwen-7B": _qwen2(
        bos_token_id=151643, eos_token_id=151643, sliding_window=4096, rope_theta=10000, use_mrope=False
    ),
    "SmolLM2-135M": _llama(
        **_sizes(heads=9, groups=3, vocab_size=49152, positions=8192),
        **_PLAIN_ATTENTION,
        is_llama_config=True,
        mlp_bias=False,
        rope_interleaved=False,
        rope_theta=100000,
        torch_dtype="bfloat16",
    )
    | {"initializer_range": 0.041666666666666664, "tie_word_embeddings": True},
    "TinyLlama-1.1B": _llama(**_sizes(groups=4, positions=2048), attention_bias=False, rope_theta=10000.0),
    "zephyr-7b-beta": _mistral(pad_token_id=2, use_cache=True, _name_or_path="mistralai/Mistral-7B-v0.1"),
    "Yi-6B": _llama(**_sizes(groups=4, vocab_size=64000, positions=4096), pad_token_id=0, rope_theta=5000000.0),
    "OpenHermes-2.5-Mistral-7B": _mistral(eos_token_id=32000, vocab_size=32002, use_cache=False),
}
"""Name of a model -> its config.json."""


def narrowed(name: str) -> dict[str, Any]:
    """The same fields with the sizes of a small model; a list of token ids stays a list."""
    published = PUBLISHED[name]
    small = published | {field: _NARROW[field] for field in _NARROW if published.get(field) is not None}
    groups = published["num_key_value_heads"]
    small["num_key_value_heads"] = {1: 1, published["num_attention_heads"]: 4}.get(groups, 2)
    if published.get("head_dim"):
        small["head_dim"] = 16
    if published.get("sliding_window"):
        small["sliding_window"] = WINDOW
    if isinstance(published["eos_token_id"], list):
        small["eos_token_id"] = [2, 3]
    return small
