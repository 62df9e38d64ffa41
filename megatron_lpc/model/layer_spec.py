"""Which modules a transformer layer is made of: the portable ones of this project, or TransformerEngine's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.distributed as dist
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import nn

from megatron_lpc.config import ModelConfig, padded_heads
from megatron_lpc.model.attention import FlashAttention
from megatron_lpc.model.local_rotary import LocalRotaryAttention
from megatron_lpc.model.norm import NormedRowParallelLinear, ProjectionRMSNorm, RMSNorm
from megatron_lpc.platform.patches.moe_router import define_te_general_gemm
from megatron_lpc.platform.process_groups import ProcessGroups


def block_spec(
    model: ModelConfig, config: TransformerConfig, vp_stage: int | None, groups: ProcessGroups
) -> TransformerBlockSubmodules | ModuleSpec:
    """Layers of this pipeline stage.

    Raises:
        ImportError: `transformer_impl` asks for TransformerEngine, which is not installed.
    """
    if model.transformer_impl == "transformer_engine":
        try:
            import transformer_engine.pytorch  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "--transformer-impl transformer_engine: install the extra `te`, or use `local`"
            ) from error
        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=model.num_experts, moe_grouped_gemm=False, qk_layernorm=model.qk_layernorm
        )
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=groups.pp.rank())
    return TransformerBlockSubmodules(layer_specs=[portable_layer(model, groups.tp)] * num_layers, layer_norm=RMSNorm)


def add_to_main_grad(chunk: nn.Module) -> None:
    """Let TransformerEngine's linear layers add their weight gradient to `main_grad` in the matrix product itself.

    `TransformerConfig.gradient_accumulation_fusion` would tell them too, but also megatron-core's own linear layer,
    which makes the LM head and needs Apex for it.
    """
    module: Any
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def portable_layer(model: ModelConfig, tp_group: dist.ProcessGroup) -> ModuleSpec:
    """A layer of megatron-core's linear modules, torch's fused attention and RMSNorm.

    In checkpoints its norms carry the names of TransformerEngine's fused modules, so that one checkpoint serves both
    implementations. The norm before experts is fused in neither.
    """
    checkpoint_names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if model.num_experts is None:
        checkpoint_names["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    input_norm = IdentityOp if model.norm_position == "output" else RMSNorm
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=input_norm,
            self_attention=_self_attention(model, tp_group),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=input_norm,
            mlp=_mlp(model),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=checkpoint_names,
        ),
    )


def _self_attention(model: ModelConfig, tp_group: dist.ProcessGroup) -> ModuleSpec:
    return ModuleSpec(
        module=SelfAttention if model.rope_local_base_freq is None else LocalRotaryAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=partial(FlashAttention, flex_backend=model.flex_attention_backend),
            linear_proj=_last_projection(model),
            q_layernorm=_qk_norm(model, tp_group, model.num_attention_heads, padded_heads(model)),
            k_layernorm=_qk_norm(
                model, tp_group, model.num_query_groups or model.num_attention_heads, model.padded_query_groups
            ),
        ),
    )


def _qk_norm(model: ModelConfig, tp_group: dist.ProcessGroup, heads: int, padded: int) -> ModuleSpec | type[nn.Module]:
    """The norm of a projection to some heads, of which the last `padded` are padding."""
    if not model.qk_layernorm:
        return IdentityOp
    if model.qk_layernorm_scope == "head":
        return RMSNorm
    params = {"heads": heads, "padded_heads": padded, "tp_group": tp_group}
    return ModuleSpec(module=ProjectionRMSNorm, params=params)


def _last_projection(model: ModelConfig) -> type[RowParallelLinear]:
    """The projection back to the hidden size, which ends attention and MLP."""
    return RowParallelLinear if model.norm_position == "input" else NormedRowParallelLinear


def _mlp(model: ModelConfig) -> ModuleSpec:
    projections = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=_last_projection(model))
    if model.num_experts is None:
        return ModuleSpec(module=MLP, submodules=projections)
    define_te_general_gemm()
    experts = ModuleSpec(module=SequentialMLP, submodules=projections)
    return ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=experts))
