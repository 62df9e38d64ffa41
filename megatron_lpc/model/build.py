"""From options to this rank's model chunks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn
from torch.nn.functional import gelu, silu

from megatron_lpc.config import Config, LatentConfig, padded_vocab_size
from megatron_lpc.model.initialize import initialize_parameters
from megatron_lpc.model.latent_head import build_latent_head
from megatron_lpc.model.layer_spec import block_spec
from megatron_lpc.model.preference_model import PreferenceModel
from megatron_lpc.platform import Platform

_GATES = {"swiglu": silu, "geglu": partial(gelu, approximate="tanh")}


def transformer_config(config: Config, platform: Platform) -> TransformerConfig:
    """megatron-core's view of the options."""
    model, parallel = config.model, config.parallel
    dtype = torch.bfloat16 if config.training.bf16 else torch.float32
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_moe_experts=model.num_experts,
        moe_ffn_hidden_size=None if model.num_experts is None else model.ffn_hidden_size,
        moe_router_topk=model.moe_router_topk,
        moe_router_pre_softmax=model.moe_router_pre_softmax,
        moe_router_load_balancing_type="none",
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups or model.num_attention_heads,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        layernorm_zero_centered_gamma=model.apply_layernorm_1p,
        gated_linear_unit=True,
        activation_func=_GATES[model.activation],
        add_bias_linear=False,
        add_qkv_bias=model.add_qkv_bias,
        qk_layernorm=model.qk_layernorm,
        window_size=None if model.sliding_window is None else (model.sliding_window - 1, 0),
        init_method_std=model.init_method_std,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.num_virtual_stages_per_pipeline_rank,
        sequence_parallel=parallel.sequence_parallel,
        recompute_granularity=parallel.recompute_granularity,
        recompute_method=parallel.recompute_method,
        recompute_num_layers=parallel.recompute_num_layers,
        # Interleaved stages need one shape a step: with two ranks core mixes up the shapes sent to the previous and to the next stage.
        variable_seq_lengths=parallel.pipeline_model_parallel_size > 1
        and not parallel.num_virtual_stages_per_pipeline_rank,
        moe_token_dispatcher_type="alltoall",  # Dense models too: the default refuses variable sequence lengths.
        deallocate_pipeline_outputs=True,
        calculate_per_token_loss=True,
        bf16=config.training.bf16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        **platform.transformer_options(),
    )


def build_model(config: Config, platform: Platform, latent: LatentConfig) -> list[nn.Module]:
    """This rank's model chunks (one per virtual pipeline stage), on its device, in the training precision, with fresh weights.

    Weights are a function of the seed and of each parameter's name alone, the same in every parallel layout.

    Args:
        latent: which head the last stage carries; a reference model is built with `latent_mode` none.
    """
    megatron_config = transformer_config(config, platform)
    model, virtual = config.model, config.parallel.num_virtual_stages_per_pipeline_rank
    assert model.vocab_size is not None
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    chunks: list[nn.Module] = []
    for stage in range(virtual or 1):
        vp_stage = stage if virtual else None
        first = pp_group.rank() == 0 and stage == 0
        last = pp_group.rank() == pp_group.size() - 1 and stage == (virtual or 1) - 1
        chunk: nn.Module = PreferenceModel(
            config=megatron_config,
            transformer_layer_spec=block_spec(model, megatron_config, vp_stage, pp_group.rank()),
            vocab_size=padded_vocab_size(config, model.vocab_size),
            real_vocab_size=model.vocab_size,
            logps_chunk_size=config.loss.logps_chunk_size,
            embedding_scale=math.sqrt(model.hidden_size) if model.scale_embeddings else None,
            packs_sequences=model.transformer_impl == "transformer_engine",
            latent_head=partial(build_latent_head, megatron_config, latent, config.training.seed),
            max_sequence_length=model.max_position_embeddings,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
            position_embedding_type="rope",
            rotary_percent=model.rotary_percent,
            rotary_base=model.rotary_base,
            rope_scaling=model.use_rope_scaling,
            rope_scaling_factor=model.rope_scaling_factor,
            seq_len_interpolation_factor=model.rotary_seq_len_interpolation_factor,
            vp_stage=vp_stage,
        )
        initialize_parameters(chunk, model, latent, config.training.seed)
        chunk.to(platform.device)
        chunks.append(Float16Module(megatron_config, chunk) if config.training.bf16 else chunk)
    return chunks


def wrap_data_parallel(config: Config, chunks: list[nn.Module]) -> list[DistributedDataParallel]:
    """Each chunk with fp32 gradient buffers that are summed over the data parallel group."""
    parallel = config.parallel
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
    )
    wrapped = [
        # Later virtual chunks start their backward pass first and cannot overlap: one bucket each, as Megatron-LM does.
        DistributedDataParallel(chunk.config, ddp_config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    # The pipeline schedules find what they need to call in the model's configuration.
    schedule = wrapped[0].config
    schedule.finalize_model_grads_func = finalize_model_grads
    if parallel.overlap_grad_reduce:
        schedule.no_sync_func = _one_or_list([chunk.no_sync for chunk in wrapped])
    if parallel.overlap_grad_reduce and len(wrapped) > 1:
        schedule.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    if parallel.overlap_param_gather and len(wrapped) > 1:
        schedule.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
    return wrapped


def _one_or_list(functions: list[Any]) -> Any:
    return functions if len(functions) > 1 else functions[0]


def unwrapped(chunk: nn.Module) -> Any:
    """The `PreferenceModel` within its precision and data parallel wrappers."""
    while isinstance(module := getattr(chunk, "module", None), nn.Module):
        chunk = module
    return chunk
