"""The backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lpc.config.idle_rules import (
    FROZEN_BACKBONE,
    NO_ATTENTION_MASK,
    NO_EXPERTS,
    NO_QK_LAYERNORM,
    NO_ROPE_SCALING,
    NO_SLIDING_WINDOW,
    TE_ATTENTION,
)
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the Llama-like backbone (RMSNorm, gated MLP, rotary position embedding)."""

    num_layers: int = option(4, range="[1, 4096]", role=Role.BACKBONE, hf_setting="num_hidden_layers")
    """Transformer layers, over all pipeline stages."""

    hidden_size: int = option(256, range="[1, inf)", role=Role.BACKBONE, hf_setting="hidden_size")
    """Size of the hidden states between layers."""

    ffn_hidden_size: int = option(
        688,
        range="[1, inf)",
        role=Role.BACKBONE,
        hf_rule="`intermediate_size`; in Qwen3-MoE `moe_intermediate_size`",
    )
    """Hidden size of the gated MLP; of each expert in a mixture of experts."""

    # One expert would be chosen by every token.
    num_experts: int | None = option(
        None,
        range="[2, 4096]",
        role=Role.BACKBONE,
        hf_rule="`num_local_experts` (Mixtral), `num_experts` (Qwen3-MoE)",
    )
    """Experts per layer, each an MLP (Mixtral, Qwen3-MoE); one MLP for all tokens when unset."""

    moe_router_topk: int = option(
        2,
        range="[1, inf)",
        role=Role.BACKBONE,
        idle=NO_EXPERTS,
        hf_rule="`num_experts_per_tok`",
    )
    """Experts per token."""

    moe_router_pre_softmax: bool = option(
        False,
        role=Role.BACKBONE,
        idle=NO_EXPERTS,
        hf_rule="`norm_topk_prob`, inverted (Qwen3-MoE)",
    )
    """Weight the chosen experts by a softmax over all experts instead of over the chosen ones."""

    num_attention_heads: int = option(8, range="[1, inf)", role=Role.BACKBONE, hf_setting="num_attention_heads")
    """Query heads."""

    num_query_groups: int | None = option(
        None,
        range="[1, inf)",
        role=Role.BACKBONE,
        hf_setting="num_key_value_heads",
    )
    """Key and value heads (grouped-query attention); as many as query heads when unset."""

    kv_channels: int | None = option(
        None,
        range="[1, inf)",
        role=Role.BACKBONE,
        hf_rule="`head_dim`, where config.json has it",
    )
    """Size of one attention head; `hidden_size` divided by `num_attention_heads` when unset."""

    padded_query_groups: int = option(
        0,
        range="[0, inf)",
        role=Role.BACKBONE,
        hf_rule="none; an import sets it (`--make-query-groups-divisible-by`)",
    )
    """How many of the `num_query_groups`, the last ones, are zeros that an import added with their query heads, for
    tensor parallel ranks to divide; an export drops them."""

    query_pre_attn_scalar: int | None = option(
        None,
        range="[1, inf)",
        role=Role.BACKBONE,
        hf_rule="`query_pre_attn_scalar` (Gemma 2 and 3)",
    )
    """Attention scores are divided by its square root; the size of a head when unset."""

    attn_logit_softcapping: float | None = option(
        None,
        range="(0, inf)",
        role=Role.BACKBONE,
        hf_rule="`attn_logit_softcapping` (Gemma 2)",
    )
    """c of the soft cap c tanh(x / c) on attention scores; none when unset."""

    final_logit_softcapping: float | None = option(
        None,
        range="(0, inf)",
        role=Role.BACKBONE,
        hf_rule="`final_logit_softcapping` (Gemma 2 and 3)",
    )
    """c of the soft cap c tanh(x / c) on the logits; none when unset."""

    max_position_embeddings: int = option(
        2048,
        range="[2, inf)",
        role=Role.RUN,
        hf_setting="max_position_embeddings",
        evaluation=True,
    )
    """Longest sequence in tokens; `max_length` may not exceed it."""

    vocab_size: int | None = option(None, range="[2, inf)", role=Role.BACKBONE, hf_setting="vocab_size")
    """Vocabulary size, without padding; the tokenizer's when unset."""

    make_vocab_size_divisible_by: int = option(128, range="[1, inf)", role=Role.RUN, evaluation=True)
    """The vocabulary is padded to a multiple of this for every tensor parallel size; padding gets no probability."""

    norm_epsilon: float = option(1e-5, range="(0, inf)", role=Role.BACKBONE, hf_setting="rms_norm_eps")
    """Added to the variance in RMSNorm."""

    norm_position: Literal["input", "output", "both"] = option(
        "input",
        role=Role.BACKBONE,
        hf_rule="model type `olmo2`: output; `gemma2`, `gemma3_text`: both",
    )
    """RMSNorm on the input of attention and MLP, on the output that they add (OLMo 2), or both (Gemma 2 and 3)."""

    apply_layernorm_1p: bool = option(False, role=Role.BACKBONE, hf_rule="the model types of Gemma")
    """Store norm weights as their difference from 1."""

    activation: Literal["swiglu", "geglu"] = option("swiglu", role=Role.BACKBONE, hf_rule="`hidden_act`")
    """Activation of the gated MLP: SiLU, or GELU in its tanh form (Gemma)."""

    scale_embeddings: bool = option(False, role=Role.BACKBONE, hf_rule="the model types of Gemma")
    """Multiply input embeddings by the square root of `hidden_size`."""

    rotary_base: float = option(10000.0, range="(0, inf)", role=Role.BACKBONE, hf_rule="`rope_theta`")
    """Base period of the rotary position embedding."""

    rope_local_base_freq: float | None = option(
        None,
        range="(0, inf)",
        role=Role.BACKBONE,
        idle=NO_SLIDING_WINDOW,
        hf_rule="`rope_local_base_freq` (Gemma 3)",
    )
    """Base period in layers with a sliding window, whose frequencies are then not scaled; as elsewhere when unset."""

    rotary_percent: float = option(1.0, range="(0, 1]", role=Role.BACKBONE, hf_rule="`partial_rotary_factor` (Phi)")
    """Fraction of each head that is rotated."""

    no_rope_freq: list[int] | None = option(
        None,
        range="[0, inf)",
        role=Role.BACKBONE,
        hf_rule="`no_rope_layers`, inverted (SmolLM3)",
    )
    """Layers without rotary position embedding: every Nth for one number N, or a 1 for each such layer and a 0 for each
    other; none when unset."""

    rotary_seq_len_interpolation_factor: float | None = option(
        None,
        range="[1, inf)",
        role=Role.BACKBONE,
        hf_rule="`factor` of rope type `linear`",
    )
    """Positions are divided by this; not scaled when unset."""

    use_rope_scaling: bool = option(False, role=Role.BACKBONE, hf_rule="rope type `llama3`")
    """Scale rotary frequencies as Llama 3.1 does."""

    rope_scaling_factor: float = option(
        8.0,
        range="[1, inf)",
        role=Role.BACKBONE,
        idle=NO_ROPE_SCALING,
        hf_rule="`factor` of rope type `llama3`",
    )
    """Factor of the Llama 3.1 scaling."""

    add_qkv_bias: bool = option(False, role=Role.BACKBONE, hf_rule="model type `qwen2`")
    """Bias on the query, key and value projections."""

    qk_layernorm: bool = option(False, role=Role.BACKBONE, hf_rule="model types `qwen3`, `qwen3_moe`, `olmo2`")
    """RMSNorm on queries and keys."""

    qk_layernorm_scope: Literal["head", "projection"] = option(
        "head",
        role=Role.BACKBONE,
        idle=NO_QK_LAYERNORM,
        hf_rule="model type `olmo2`: projection",
    )
    """What that norm takes together: the channels of a head, or those of all heads (OLMo 2)."""

    untie_embeddings_and_output_weights: bool = option(
        False,
        role=Role.BACKBONE,
        hf_rule="`tie_word_embeddings`, inverted",
    )
    """Give the LM head its own weight instead of the input embedding's."""

    sliding_window: int | None = option(
        None,
        range="[1, inf)",
        role=Role.BACKBONE,
        hf_rule="`sliding_window`, in families that have one",
    )
    """Tokens that a query attends to, itself included; all earlier ones when unset."""

    window_attn_skip_freq: list[int] | None = option(
        None,
        range="[0, inf)",
        role=Role.BACKBONE,
        idle=NO_SLIDING_WINDOW,
        hf_rule="`layer_types` (Qwen, SmolLM3, Gemma 2 and 3)",
    )
    """Layers without the sliding window: every Nth for one number N, or a 0 for each such layer and a 1 for each other;
    none when unset."""

    init_method_std: float = option(0.02, range="(0, inf)", role=Role.RUN, evaluation=True)
    """Standard deviation of the weights of a new model."""

    attention_dropout: float = option(0.0, range="[0, 1)", role=Role.RUN, idle=FROZEN_BACKBONE)
    """Dropout on attention probabilities."""

    hidden_dropout: float = option(0.0, range="[0, 1)", role=Role.RUN, idle=FROZEN_BACKBONE)
    """Dropout on the residual branches."""

    transformer_impl: Literal["local", "transformer_engine"] = option("local", role=Role.RUN, evaluation=True)
    """Layers: the portable ones of this project, or TransformerEngine's (extra `te`, GPU only)."""

    flex_attention_backend: Literal["auto", "triton", "flash"] = option(
        "auto",
        role=Role.RUN,
        idle=(TE_ATTENTION, NO_ATTENTION_MASK),
        evaluation=True,
    )
    """Kernels of torch's FlexAttention on a GPU: torch's choice, Triton, or FlashAttention-4 (`flash`: Hopper and
    Blackwell GPUs, the package flash-attn-4, bfloat16; not run on a GPU)."""
