"""Published models, and the runs of them that are planned."""

from __future__ import annotations

from typing import Any

from megatron_lpc.config import Config, DataConfig, ModelConfig, with_options
from megatron_lpc.plan.options import resolved

_LLAMA_8B: dict[str, Any] = {
    "num_layers": 32,
    "hidden_size": 4096,
    "ffn_hidden_size": 14336,
    "num_attention_heads": 32,
    "num_query_groups": 8,
    "vocab_size": 128256,
    "untie_embeddings_and_output_weights": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama3-8b": _LLAMA_8B,
    "llama3-70b": _LLAMA_8B
    | {"num_layers": 80, "hidden_size": 8192, "ffn_hidden_size": 28672, "num_attention_heads": 64},
    "mistral-7b": _LLAMA_8B | {"vocab_size": 32000},
    "qwen3-8b": _LLAMA_8B
    | {"num_layers": 36, "ffn_hidden_size": 12288, "kv_channels": 128, "qk_layernorm": True, "vocab_size": 151936},
    "mixtral-8x7b": _LLAMA_8B | {"vocab_size": 32000, "num_experts": 8},
}

TINY: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "vocab_size": 500,
    "make_vocab_size_divisible_by": 128,
}


def planned(world_size: int, model: str | dict[str, Any], **options: Any) -> Config:
    """Options of a run on GPUs, as a plan takes them."""
    sizes = MODELS[model] if isinstance(model, str) else model
    data = DataConfig(train_data=["pairs.jsonl"], tokenizer_model="tokenizer")
    config = Config(model=ModelConfig(**sizes), data=data)
    return resolved(with_options(config, **{"device": "cuda", "global_batch_size": 2048} | options), world_size)


def split(tensor: int, pipeline: int) -> dict[str, Any]:
    """Options of a parallel layout."""
    return {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "sequence_parallel": tensor > 1,
        "use_distributed_optimizer": True,
    }
