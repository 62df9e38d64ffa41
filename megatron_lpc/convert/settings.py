"""A backbone's config.json <-> the options of a model."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from megatron_lpc.config import (
    ModelConfig,
    canonical,
    head_width,
    hf_settings,
    layer_windows,
    layers_without_rope,
    no_rope_freq,
    saved_model,
    window_attn_skip_freq,
)
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.families import FAMILIES, Family, find_family
from megatron_lpc.convert.model_options import as_flags, differing_options
from megatron_lpc.convert.rope import local_base, rope_options, rope_settings
from megatron_lpc.outside.messages import brief, reason

_WINDOW, _NO_WINDOW = "sliding_attention", "full_attention"
"""Kinds of layers in `layer_types`."""


def read_model(config: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """Family and options of the model that a config.json describes.

    Raises:
        ConversionError: naming the model type, or the setting that megatron-core cannot express.
    """
    family = find_family(config.get("model_type"))
    if config.get("quantization_config") is not None:
        raise ConversionError(
            "config.json: quantization_config: the weights are quantized; give the model in bf16, fp16 or fp32"
        )
    completed = _complete_settings(config)
    for name, wanted in family.settings.items():
        found = getattr(completed, name, wanted)
        if (found or None) != (wanted or None):  # Unset, off and empty are the same.
            raise ConversionError(
                f"config.json: {name} is {found if isinstance(found, str) else brief(found)}; megatron-core's "
                f"{family.model_type} needs {wanted}"
            )
    try:
        return family, canonical(saved_model(vars(_model_options(family, completed))))
    except ConversionError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConversionError(
            f"config.json: describes no {family.model_type} ({type(error).__name__}: {reason(error)})"
        ) from error


def _complete_settings(config: Mapping[str, Any]) -> PreTrainedConfig:
    """All settings, with the family's defaults, from a config.json that transformers 4 or 5 wrote.

    transformers fills in the defaults, which differ between families, and also reads the fields of its version 4.
    """
    try:
        return AutoConfig.for_model(**deepcopy(dict(config)))  # It completes nested settings in place.
    except Exception as error:  # its configurations compute with the values before they check them
        raise ConversionError(
            f"config.json: transformers refuses it: {type(error).__name__}: {reason(error)}"
        ) from error


def _model_options(family: Family, config: PreTrainedConfig) -> ModelConfig:
    return ModelConfig(
        **{name: getattr(config, setting) for name, setting in hf_settings().items()},
        ffn_hidden_size=getattr(config, family.ffn_hidden_size_setting),
        kv_channels=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        untie_embeddings_and_output_weights=not config.tie_word_embeddings,
        **_window_options(family, config),
        **_no_rope_options(family, config),
        **_expert_options(family, config),
        **{name: getattr(config, name) for name in family.own_settings},
        **family.options,
        **_rope_options(family, config),
    )


def _rope_options(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    rope = config.rope_parameters
    if not family.has_local_rope:
        return rope_options(rope, has_partial_rotary_factor=family.has_partial_rotary_factor)
    options = rope_options(rope[_NO_WINDOW])
    if _window_options(family, config):
        options["rope_local_base_freq"] = local_base(rope[_WINDOW])
    return options


def _expert_options(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    """Options of a mixture of experts; none for a dense family.

    The auxiliary loss that balances experts (`router_aux_loss_coef`) belongs to training, so no option of the model
    mirrors it.
    """
    if family.num_experts_setting is None:
        return {}
    adds_up_to_one = config.norm_topk_prob if family.has_norm_topk_prob else True
    if config.num_experts_per_tok == 1 and adds_up_to_one:
        raise ConversionError(
            "config.json: num_experts_per_tok is 1 and its mixing weight would always be 1: "
            "megatron-core refuses such a router"
        )
    return {
        "num_experts": getattr(config, family.num_experts_setting),
        "moe_router_topk": config.num_experts_per_tok,
        "moe_router_pre_softmax": not adds_up_to_one,
    }


def _window_options(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    if family.window == "none" or config.sliding_window is None:
        return {}
    if family.window == "all layers":
        return {"sliding_window": config.sliding_window}
    unknown = set(config.layer_types) - {_WINDOW, _NO_WINDOW}
    if unknown:
        raise ConversionError(f"config.json: layer_types has {', '.join(sorted(unknown))}, which is not supported")
    windows = [config.sliding_window if kind == _WINDOW else None for kind in config.layer_types]
    if not any(windows):
        return {}
    return {"sliding_window": config.sliding_window, "window_attn_skip_freq": window_attn_skip_freq(windows)}


def _no_rope_options(family: Family, config: PreTrainedConfig) -> dict[str, Any]:
    if not family.has_no_rope_layers:
        return {}
    # The list may be longer than there are layers.
    with_rope = config.no_rope_layers[: config.num_hidden_layers]
    return {"no_rope_freq": no_rope_freq([not rotated for rotated in with_rope])}


def write_settings(family: Family, model: ModelConfig) -> dict[str, Any]:
    """A config.json made from the options of a model, with the field names that transformers 4 and 5 both read."""
    settings: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **{setting: getattr(model, name) for name, setting in hf_settings().items()},
        "intermediate_size": model.ffn_hidden_size,
        family.ffn_hidden_size_setting: model.ffn_hidden_size,
        "head_dim": head_width(model),
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        **{name: getattr(model, name) for name in family.own_settings},
        **family.settings,
        **rope_settings(model),
    }
    if "query_pre_attn_scalar" in family.own_settings:
        settings["query_pre_attn_scalar"] = model.query_pre_attn_scalar or head_width(model)
    if family.num_experts_setting is not None:
        settings[family.num_experts_setting] = model.num_experts
        settings["num_experts_per_tok"] = model.moe_router_topk
    if family.has_norm_topk_prob:
        settings["norm_topk_prob"] = not model.moe_router_pre_softmax
    if family.window != "none":
        settings["sliding_window"] = model.sliding_window
    if family.window == "by layer":
        settings["use_sliding_window"] = model.sliding_window is not None
        if model.window_attn_skip_freq is None:
            settings["max_window_layers"] = 0  # For versions of transformers that do not know `layer_types`.
        settings["layer_types"] = [_WINDOW if window else _NO_WINDOW for window in layer_windows(model)]
    if family.has_no_rope_layers:
        settings["no_rope_layers"] = [int(not without) for without in layers_without_rope(model)]
    if family.has_local_rope:
        settings["rope_local_base_freq"] = float(model.rope_local_base_freq or model.rotary_base)
    if family.has_partial_rotary_factor:
        settings["partial_rotary_factor"] = model.rotary_percent
    return settings


def fit_family(model: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """A family that expresses a model which was not made from a config.json, and its settings.

    The settings are read back and must give the same model.

    Raises:
        ConversionError: no family expresses the model; the message names its unusual options.
    """
    model = canonical(model)
    for family in FAMILIES.values():
        settings = write_settings(family, model)
        if _is_read_as(settings, family, model):
            return family, settings
    _, plain = read_model(write_settings(FAMILIES["llama"], model))
    unusual = as_flags(differing_options(plain, model))
    raise ConversionError(
        f"no Hugging Face family has this model: none combines {unusual}; known families: {', '.join(FAMILIES)}"
    )


def _is_read_as(settings: Mapping[str, Any], family: Family, model: ModelConfig) -> bool:
    family_has_experts = family.num_experts_setting is not None
    model_has_experts = model.num_experts is not None
    if family_has_experts != model_has_experts:
        return False
    try:
        _, read_back = read_model(settings)
    except ConversionError:
        return False  # transformers refuses some combinations: of Phi-3 with a scaling of Llama, for example.
    return not differing_options(read_back, model)
