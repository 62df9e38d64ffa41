"""The model families that can be converted, each a row of a table.

To add one, add a row here and a case to tests/convert/models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_lpc.config import ModelConfig
from megatron_lpc.convert.decoder import (
    BOTH_NORMS_DECODER,
    DECODER,
    EMBEDDING,
    FUSED_DECODER,
    LM_HEAD,
    OUTPUT_NORM_DECODER,
    QK_NORM,
    QKV_BIAS,
    expert_decoder,
)
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.weights import Weight
from megatron_lpc.outside.messages import brief


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face."""

    model_type: str
    """`model_type` in config.json."""
    architecture: str
    """Class of transformers that `architectures` in config.json names."""
    weights: tuple[Weight, ...] = DECODER
    """All tensors but the embedding and the LM head."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the model that the family implies and config.json does not mention."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of config.json that must have this value wherever they occur."""
    window: Literal["none", "all layers", "by layer"] = "none"
    """How config.json states a sliding window: not at all, by `sliding_window` (Mistral), or for each layer (Qwen)."""
    own_settings: tuple[str, ...] = ()
    """Settings of config.json that are options of the model, under the same names."""
    has_local_rope: bool = False
    """Whether layers with a sliding window have another rotary base, `rope_local_base_freq`."""
    has_partial_rotary_factor: bool = False
    """Whether transformers reads `partial_rotary_factor`."""
    has_no_rope_layers: bool = False
    """Whether config.json states for each layer if positions are rotated."""
    num_experts_setting: str | None = None
    """Setting of config.json with the number of experts; None for a dense family."""
    ffn_hidden_size_setting: str = "intermediate_size"
    """Setting of config.json with the hidden size of the MLP, or of one expert."""
    has_norm_topk_prob: bool = False
    """Whether config.json states if the mixing weights of a token's experts add up to 1; where it does not, they do."""

    def all_weights(self, model: ModelConfig) -> tuple[Weight, ...]:
        """Tensors of this model, in the order of the forward pass."""
        lm_head = (LM_HEAD,) if model.untie_embeddings_and_output_weights else ()
        return (EMBEDDING, *self.weights, *lm_head)


_SILU_WITHOUT_BIAS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

_LLAMA = Family(model_type="llama", architecture="LlamaForCausalLM", settings=_SILU_WITHOUT_BIAS)

_MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    settings=_SILU_WITHOUT_BIAS,
    window="all layers",
)

_QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    weights=DECODER + QKV_BIAS,
    options={"add_qkv_bias": True},
    settings={"hidden_act": "silu"},
    window="by layer",
)

_QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    weights=DECODER + QK_NORM,
    options={"qk_layernorm": True},
    settings=_SILU_WITHOUT_BIAS,
    window="by layer",
)

_GEMMA2_SETTINGS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": None,
}

_GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    options={"apply_layernorm_1p": True, "activation": "geglu", "scale_embeddings": True},
    settings={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": None},
)

_SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    settings=_SILU_WITHOUT_BIAS,
    window="by layer",
    has_no_rope_layers=True,
)

_PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    weights=FUSED_DECODER,
    settings={"hidden_act": "silu"},
    window="all layers",
    has_partial_rotary_factor=True,
)

_OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    weights=OUTPUT_NORM_DECODER + QK_NORM,
    options={"norm_position": "output", "qk_layernorm": True, "qk_layernorm_scope": "projection"},
    settings={"hidden_act": "silu", "attention_bias": False},
)

_GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    weights=BOTH_NORMS_DECODER,
    options={**_GEMMA.options, "norm_position": "both"},
    settings=_GEMMA2_SETTINGS,
    window="by layer",
    own_settings=("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
)

_GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    weights=BOTH_NORMS_DECODER + QK_NORM,
    options={**_GEMMA2.options, "qk_layernorm": True},
    # transformers has the setting, and does not read it.
    settings={**_GEMMA2_SETTINGS, "attn_logit_softcapping": None},
    window="by layer",
    own_settings=("query_pre_attn_scalar", "final_logit_softcapping"),
    has_local_rope=True,
)

_MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    weights=expert_decoder("block_sparse_moe", gate="w1", up="w3", down="w2"),
    settings={"hidden_act": "silu", "router_jitter_noise": 0.0},
    window="all layers",
    num_experts_setting="num_local_experts",
)

_QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    weights=expert_decoder("mlp", gate="gate_proj", up="up_proj", down="down_proj") + QK_NORM,
    options={"qk_layernorm": True},
    settings={
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    },
    num_experts_setting="num_experts",
    ffn_hidden_size_setting="moe_intermediate_size",
    has_norm_topk_prob=True,
)

FAMILIES = {
    family.model_type: family
    for family in (
        _LLAMA,
        _MISTRAL,
        _QWEN2,
        _QWEN3,
        _SMOLLM3,
        _PHI3,
        _OLMO2,
        _GEMMA,
        _GEMMA2,
        _GEMMA3,
        _MIXTRAL,
        _QWEN3_MOE,
    )
}
"""`model_type` -> family, in the order in which `fit_family` tries them."""

REFUSED = {
    "qwen2_moe": "it has an expert that all tokens share, and the model of this project has only routed experts",
    "qwen3_next": "it has layers of linear attention, and the model of this project has none",
    "deepseek_v3": "it has multi-head latent attention, and the model of this project has none",
    "gemma3": "it also reads images; its language model alone has the model type gemma3_text",
}
"""Near relatives of the supported families, and why they cannot be converted."""


def find_family(model_type: object) -> Family:
    """The family of a `model_type`.

    Raises:
        ConversionError: the type is not in the table.
    """
    if not isinstance(model_type, str | None):
        raise ConversionError(f"config.json: model_type must be text, got {brief(model_type)}")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
    raise ConversionError(
        f"config.json: model type '{model_type}' cannot be converted{reason}; known types: {', '.join(FAMILIES)}"
    )
