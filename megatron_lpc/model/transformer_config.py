"""megatron-core's view of the options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import gelu, silu

from megatron_lpc.config import Config, ModelConfig, layer_windows, layers_without_rope
from megatron_lpc.platform import Platform

_GATES = {"swiglu": silu, "geglu": partial(gelu, approximate="tanh")}


@dataclass
class BackboneConfig(TransformerConfig):
    """megatron-core's configuration, with what only the portable layers read."""

    attn_logit_softcapping: float | None = None
    """c of a soft cap c tanh(x / c) on attention scores."""


def transformer_config(config: Config, platform: Platform) -> BackboneConfig:
    """The configuration of a run, for the policy and for its reference."""
    dtype = torch.bfloat16 if config.training.bf16 else torch.float32
    return BackboneConfig(
        **_architecture(config.model),
        **_parallelism(config),
        **platform.transformer_options(),
        bf16=bool(config.training.bf16),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # On CUDA, torch's gradient of the embedding adds up in any order; on a CPU it repeats, and with other bits.
        deterministic_mode=config.training.deterministic and platform.is_cuda,
        # Not `perform_initialization=False`: core's initialisation also marks the weights that are shards, and without
        # the mark the gradient norm counts only the first rank's.
        init_method=_leave_unset,
        output_layer_init_method=_leave_unset,
        embedding_init_method=_leave_unset,
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=True,
        **_fusions(config.model),
        fp8=config.training.fp8_format,
        fp8_recipe=config.training.fp8_recipe,
    )


def _leave_unset(weight: Tensor) -> Tensor:
    """In place of core's random numbers: `initialize_parameters` draws what no checkpoint gives."""
    return weight


def _fusions(model: ModelConfig) -> dict[str, bool]:
    """Fused kernels. The portable layers do without; so do core's unfused attention and norms, which nothing uses."""
    with_te = model.transformer_impl == "transformer_engine"
    return {
        # Unfused, core would read the length of each packed document from the device, in each layer.
        "apply_rope_fusion": with_te,
        # core fuses the tanh form of GELU under the name of the exact one, and refuses any other.
        "bias_activation_fusion": with_te and model.activation == "swiglu",
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "persist_layer_norm": False,
        # For core's own linear layer this needs Apex; see `layer_spec.add_to_main_grad` for TransformerEngine's.
        "gradient_accumulation_fusion": False,
    }


def _architecture(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_moe_experts": model.num_experts,
        "moe_ffn_hidden_size": None if model.num_experts is None else model.ffn_hidden_size,
        "moe_router_topk": model.moe_router_topk,
        "moe_router_pre_softmax": model.moe_router_pre_softmax,
        "moe_router_load_balancing_type": "none",
        # For dense models too: the default dispatcher refuses variable sequence lengths.
        "moe_token_dispatcher_type": "alltoall",
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups or model.num_attention_heads,
        "kv_channels": model.kv_channels,
        "attn_logit_softcapping": model.attn_logit_softcapping,
        "softmax_scale": None if model.query_pre_attn_scalar is None else model.query_pre_attn_scalar**-0.5,
        "window_size": None if model.sliding_window is None else (model.sliding_window - 1, 0),
        "window_attn_skip_freq": [int(window is not None) for window in layer_windows(model)],
        "no_rope_freq": [int(without) for without in layers_without_rope(model)],
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.norm_epsilon,
        "layernorm_zero_centered_gamma": model.apply_layernorm_1p,
        "gated_linear_unit": True,
        "activation_func": _GATES[model.activation],
        "add_bias_linear": False,
        "add_qkv_bias": model.add_qkv_bias,
        # Set, core sums the gradients of these norms over the tensor parallel ranks, which hold shards of a norm of the
        # whole projection.
        "qk_layernorm": model.qk_layernorm and model.qk_layernorm_scope == "head",
        "init_method_std": model.init_method_std,
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
    }


def _parallelism(config: Config) -> dict[str, Any]:
    parallel = config.parallel
    is_pipeline = parallel.pipeline_model_parallel_size > 1
    is_interleaved = bool(parallel.num_virtual_stages_per_pipeline_rank)
    is_packed = config.data.pack_to is not None
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.num_virtual_stages_per_pipeline_rank,
        "sequence_parallel": parallel.sequence_parallel,
        "recompute_granularity": parallel.recompute_granularity,
        "recompute_method": parallel.recompute_method,
        "recompute_num_layers": parallel.recompute_num_layers,
        # Stages then tell each other every shape, for which the host waits on CUDA. Packed micro-batches have one
        # shape. Interleaved stages need one shape per step: with two pipeline ranks megatron-core mixes up the shapes
        # that it sends to the previous and to the next stage.
        "variable_seq_lengths": is_pipeline and not is_interleaved and not is_packed,
    }
