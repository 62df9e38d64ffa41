"""The families of models that can be converted, each a table. To add one, add a row here and a case to tests/convert/models.py."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from megatron_lpc.config import ModelConfig, head_width, hf_settings, options_of_conversion
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.rope import rope_options, rope_settings
from megatron_lpc.convert.weights import DECODER, EMBEDDING, OUTPUT, QK_NORM, QKV_BIAS, Weight, expert_decoder


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face."""

    model_type: str
    architecture: str
    weights: tuple[Weight, ...] = DECODER
    """All but the embedding and the LM head."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the model that the family implies and config.json does not say."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of config.json that must have this value, where they are there at all."""
    window: Literal["none", "all layers", "by layer"] = "none"
    """How config.json tells of a sliding window: never, by `sliding_window` alone (Mistral), or layer by layer (Qwen)."""
    experts: str | None = None
    """Field of config.json with the number of experts; None for a dense family."""
    mlp_width: str = "intermediate_size"
    """Field of config.json with the width of the MLP, or of an expert."""
    has_norm_topk_prob: bool = False
    """Whether config.json says if the weights of a token's experts add up to 1; they do where it does not."""

    def all_weights(self, model: ModelConfig) -> tuple[Weight, ...]:
        """Tensors of this model, in the order of the forward pass."""
        return (EMBEDDING, *self.weights, *((OUTPUT,) if model.untie_embeddings_and_output_weights else ()))


_SILU = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="llama", architecture="LlamaForCausalLM", settings=_SILU),
        Family(model_type="mistral", architecture="MistralForCausalLM", settings=_SILU, window="all layers"),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            weights=DECODER + QKV_BIAS,
            options={"add_qkv_bias": True},
            settings={"hidden_act": "silu"},
            window="by layer",
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            weights=DECODER + QK_NORM,
            options={"qk_layernorm": True},
            settings=_SILU,
            window="by layer",
        ),
        Family(
            model_type="gemma",
            architecture="GemmaForCausalLM",
            options={"apply_layernorm_1p": True, "activation": "geglu", "scale_embeddings": True},
            settings={"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": None},
        ),
        Family(
            model_type="mixtral",
            architecture="MixtralForCausalLM",
            weights=expert_decoder("block_sparse_moe", gate="w1", up="w3", down="w2"),
            settings={"hidden_act": "silu", "router_jitter_noise": 0.0},
            window="all layers",
            experts="num_local_experts",
        ),
        Family(
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
            experts="num_experts",
            mlp_width="moe_intermediate_size",
            has_norm_topk_prob=True,
        ),
    )
}

_SHARED_EXPERT = (
    "it has an expert that all tokens share, and the model of this project has only those that a router chooses"
)
_SOFT_CAPS = "it has norms behind each block, other layers in turn, and (Gemma 2) soft caps on its logits"
REFUSED = {
    "qwen2_moe": _SHARED_EXPERT,
    "gemma2": _SOFT_CAPS,
    "gemma3": _SOFT_CAPS,
    "gemma3_text": _SOFT_CAPS,
}
"""Near relatives of what is supported, and why they are not."""


def find_family(model_type: str | None) -> Family:
    """The family of a `model_type`.

    Raises:
        ConversionError: it is none of those known.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
    raise ConversionError(
        f"config.json: model type '{model_type}' cannot be converted{reason}; known types: {', '.join(FAMILIES)}"
    )


def read_model(config: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """Family and options of the model that a config.json describes.

    Raises:
        ConversionError: naming the model type, or the setting that megatron-core cannot express.
    """
    family = find_family(config.get("model_type"))
    if "quantization_config" in config:
        raise ConversionError(
            "config.json: quantization_config: the weights are quantized; give the model in bf16, fp16 or fp32"
        )
    # transformers fills in the defaults, which differ from family to family, and reads the fields of its version 4 as well.
    try:
        full = AutoConfig.for_model(**deepcopy(dict(config)))  # It completes nested settings in place.
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConversionError(f"config.json: transformers refuses it: {error}") from error
    for name, wanted in family.settings.items():
        if getattr(full, name, wanted) != wanted:
            raise ConversionError(
                f"config.json: {name} is {getattr(full, name)}; megatron-core's {family.model_type} needs {wanted}"
            )
    model = ModelConfig(
        **{name: getattr(full, setting) for name, setting in hf_settings().items()},
        ffn_hidden_size=getattr(full, family.mlp_width),
        kv_channels=getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads,
        untie_embeddings_and_output_weights=not full.tie_word_embeddings,
        sliding_window=_window(family, full),
        **_expert_options(family, full),
        **family.options,
        **rope_options(full.rope_parameters),
    )
    return family, model


def _expert_options(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    """The auxiliary loss that balances experts (`router_aux_loss_coef`) belongs to training, and is none of the model's options."""
    if family.experts is None:
        return {}
    normed = not family.has_norm_topk_prob or config.norm_topk_prob
    chosen = config.num_experts_per_tok
    if chosen == 1 and normed:
        raise ConversionError(
            "config.json: num_experts_per_tok is 1, whose weight would always be 1: megatron-core refuses such a router"
        )
    return {
        "num_experts": getattr(config, family.experts),
        "moe_router_topk": chosen,
        "moe_router_pre_softmax": not normed,
    }


def _window(family: Family, config: PreTrainedConfig) -> int | None:
    if family.window == "none":
        return None
    if family.window == "by layer":
        kinds = set(config.layer_types)
        if len(kinds) > 1:
            raise ConversionError(
                "config.json: some layers have a sliding window and others do not; --sliding-window is one for all layers"
            )
        return config.sliding_window if kinds == {"sliding_attention"} else None
    return config.sliding_window


def write_settings(family: Family, model: ModelConfig) -> dict[str, Any]:
    """A config.json from nothing but the options of a model, with the field names that transformers 4 and 5 both read."""
    settings: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **{setting: getattr(model, name) for name, setting in hf_settings().items()},
        "intermediate_size": model.ffn_hidden_size,
        family.mlp_width: model.ffn_hidden_size,
        "head_dim": head_width(model),
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        **family.settings,
        **rope_settings(model),
    }
    if family.experts is not None:
        settings |= {family.experts: model.num_experts, "num_experts_per_tok": model.moe_router_topk}
    if family.has_norm_topk_prob:
        settings["norm_topk_prob"] = not model.moe_router_pre_softmax
    if family.window != "none":
        settings["sliding_window"] = model.sliding_window
    if family.window == "by layer":
        settings |= {"use_sliding_window": model.sliding_window is not None, "max_window_layers": 0}
    return settings


def fit_family(model: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """A family that expresses a model which came from no config.json, and its settings. Proved by reading the settings back.

    Raises:
        ConversionError: there is none.
    """
    model = complete(model)
    for family in FAMILIES.values():
        if (family.experts is None) != (model.num_experts is None):
            continue
        settings = write_settings(family, model)
        if not differing_options(read_model(settings)[1], model):
            return family, settings
    plain = read_model(write_settings(FAMILIES["llama"], model))[1]
    unusual = ", ".join(f"--{name.replace('_', '-')}" for name in differing_options(plain, model))
    raise ConversionError(
        f"no Hugging Face family has this model: none combines {unusual}; known families: {', '.join(FAMILIES)}"
    )


def weight_options(model: ModelConfig) -> dict[str, Any]:
    """Options that say what the weights mean: neither how they started nor how they are trained."""
    return {name: value for name, value in asdict(model).items() if name in options_of_conversion()}


def complete(model: ModelConfig) -> ModelConfig:
    """With the options filled in that follow from others."""
    groups = model.num_query_groups or model.num_attention_heads
    return ModelConfig(**asdict(model) | {"num_query_groups": groups, "kv_channels": head_width(model)})


def differing_options(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Names of the options in which two models differ, other than in their longest sequence."""
    left, right = weight_options(complete(one)), weight_options(complete(other))
    return [name for name in left if left[name] != right[name] and name != "max_position_embeddings"]
