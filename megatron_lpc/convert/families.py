"""The model families that can be converted, each a row of a table.

To add one, add a row here and a case to tests/convert/models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_lpc.config import ModelConfig
from megatron_lpc.convert.decoder import DECODER, EMBEDDING, LM_HEAD, QK_NORM, QKV_BIAS, expert_decoder
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.weights import Weight


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

_GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    options={"apply_layernorm_1p": True, "activation": "geglu", "scale_embeddings": True},
    settings={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": None},
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

FAMILIES = {family.model_type: family for family in (_LLAMA, _MISTRAL, _QWEN2, _QWEN3, _GEMMA, _MIXTRAL, _QWEN3_MOE)}
"""`model_type` -> family, in the order in which `fit_family` tries them."""

_SHARED_EXPERT = "it has an expert that all tokens share, and the model of this project has only routed experts"
_SOFT_CAPS = "it has norms after each block, alternating kinds of layers, and (Gemma 2) soft caps on its logits"
REFUSED = {
    "qwen2_moe": _SHARED_EXPERT,
    "gemma2": _SOFT_CAPS,
    "gemma3": _SOFT_CAPS,
    "gemma3_text": _SOFT_CAPS,
}
"""Near relatives of the supported families, and why they cannot be converted."""


def find_family(model_type: str | None) -> Family:
    """The family of a `model_type`.

    Raises:
        ConversionError: the type is not in the table.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
    raise ConversionError(
        f"config.json: model type '{model_type}' cannot be converted{reason}; known types: {', '.join(FAMILIES)}"
    )
