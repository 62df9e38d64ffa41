"""The LPC head on both sides: its tensors, which have the same names, and the config.json around the backbone's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from megatron_lpc.config import LatentConfig, ModelConfig, saved_section
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hub.configuration_lpc import LPCConfig
from megatron_lpc.convert.hub.modeling_lpc import LatentHead
from megatron_lpc.convert.weights import Shape, Weight
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.outside.typed import misfit

MODEL_TYPE = LPCConfig.model_type
BACKBONE_PREFIX = "backbone."
"""What the names of the backbone's tensors begin with in an exported model with a head."""
HEAD_PREFIX = "latent_head."
"""What the names of the head's tensors begin with, on both sides."""
_CODE_NAMES = ("configuration_lpc.py", "modeling_lpc.py", "prior_network.py", "saved_latent.py")
CODE_FILES = [Path(__file__).parent / "hub" / name for name in _CODE_NAMES]
"""Files that an exported model with a head needs beside its weights."""
_CONVERTED_MODES = ("lpc", "continuous")
_SHARED_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
"""Settings of the backbone that transformers also reads from the config.json around it."""


def head_weights(model: ModelConfig, latent: Mapping[str, Any]) -> tuple[Weight, ...]:
    """Tensors of the head that `latent` describes."""
    config = LPCConfig(
        text_config={"model_type": "llama", "hidden_size": model.hidden_size, "num_attention_heads": 1},
        latent=dict(latent),
    )
    with torch.device("meta"):
        tensors = LatentHead(config).state_dict()
    weights = []
    for suffix, tensor in tensors.items():
        name = HEAD_PREFIX + suffix
        weights.append(Weight(name, (name,), partial(_fixed_shape, tuple(tensor.shape))))
    return tuple(weights)


def _fixed_shape(shape: Shape, model: ModelConfig) -> Shape:
    return shape


def head_settings(
    backbone: Mapping[str, Any], latent: Mapping[str, Any], code_names: list[str] | None
) -> dict[str, Any]:
    """config.json of a model with a head.

    Args:
        backbone: config.json of the model without the head.
        latent: options of the head and of its training.
        code_names: one name per code.
    """
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["LPCForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_lpc.LPCConfig",
            "AutoModelForCausalLM": "modeling_lpc.LPCForCausalLM",
        },
        **{name: backbone[name] for name in _SHARED_SETTINGS if name in backbone},
        "latent": dict(latent),
        "code_names": code_names,
        "text_config": dict(backbone),
    }


def check_mode(folder: Path, latent_mode: str) -> None:
    """Refuse the head of a checkpoint that an exported model cannot have.

    Raises:
        ConversionError: naming the mode.
    """
    if latent_mode not in (*_CONVERTED_MODES, "none"):
        raise ConversionError(
            f"{folder}: latent_mode is {latent_mode}, whose head is not converted, as {' or '.join(_CONVERTED_MODES)} "
            "is; --backbone-only exports the model without it"
        )


def check_head(latent: Mapping[str, Any], code_names: object) -> None:
    """Refuse a head in a config.json that training cannot build.

    Raises:
        ConversionError: naming the setting.
    """
    try:
        options = LatentConfig(**saved_section("latent", latent))
    except Malformed as error:
        raise ConversionError(
            f"config.json: {error}; its keys are the options of the section `latent` of a run"
        ) from error
    if options.latent_mode not in _CONVERTED_MODES:
        raise ConversionError(
            f"config.json: latent_mode is {options.latent_mode}; a model with a head has "
            f"{' or '.join(_CONVERTED_MODES)}"
        )
    if code_names is None:
        return
    if misfit(code_names, list[str]) or len(cast(list[str], code_names)) != options.codebook_size:
        raise ConversionError(f"config.json: code_names must name each of the {options.codebook_size} codes")
