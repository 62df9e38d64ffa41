"""Rotary position embeddings: Hugging Face's `rope_parameters` <-> the options of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from megatron_lpc.config import ModelConfig
from megatron_lpc.convert.errors import ConversionError

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants within megatron-core's scaling (`RotaryEmbedding._apply_scaling`)."""


def rope_options(rope: Mapping[str, Any], *, has_partial_rotary_factor: bool = False) -> dict[str, Any]:
    """Options of the model for `rope_parameters`.

    Args:
        rope: as transformers 5 completes them: `rope_type` and `rope_theta` are always there.
        has_partial_rotary_factor: whether the family rotates a part of each head.

    Raises:
        ConversionError: naming the setting that megatron-core cannot express.
    """
    rotated = rope.get("partial_rotary_factor", 1.0)
    if rotated != 1.0 and not has_partial_rotary_factor:
        raise ConversionError(f"config.json: partial_rotary_factor {rotated} is not supported in this family")
    options = {
        "rotary_base": _base(rope),
        "rotary_percent": float(rotated),
        "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": False,
        "rope_scaling_factor": ModelConfig.rope_scaling_factor,
    }
    return options | _scaling_options(rope)


def local_base(rope: Mapping[str, Any]) -> float:
    """`rope_local_base_freq` for the `rope_parameters` of layers with a sliding window.

    Raises:
        ConversionError: they are scaled, or their base is not a positive number.
    """
    if rope["rope_type"] != "default":
        raise ConversionError(
            f"config.json: rope type '{rope['rope_type']}' in layers with a sliding window is not supported"
        )
    return _base(rope)


def _base(rope: Mapping[str, Any]) -> float:
    theta = rope["rope_theta"]
    if type(theta) not in (int, float) or not 0 < theta < math.inf:
        raise ConversionError(f"config.json: rope_theta {theta} is not a positive number")
    return float(theta)


def _scaling_options(rope: Mapping[str, Any]) -> dict[str, Any]:
    kind = rope["rope_type"]
    if kind == "default":
        return {}
    if kind == "linear":
        return {"rotary_seq_len_interpolation_factor": float(rope["factor"])}
    if kind == "llama3":
        for name, constant in _LLAMA3.items():
            if rope.get(name) != constant:
                raise ConversionError(
                    f"config.json: rope {name} is {rope.get(name)}; "
                    f"megatron-core's llama3 scaling has {constant} built in"
                )
        return {"use_rope_scaling": True, "rope_scaling_factor": float(rope["factor"])}
    raise ConversionError(
        f"config.json: rope type '{kind}' has no counterpart in megatron-core, which has default, linear and llama3"
    )


def rope_settings(model: ModelConfig) -> dict[str, Any]:
    """Settings of config.json for the options of a model, in the form that transformers 4 and 5 both read."""
    return {"rope_theta": float(model.rotary_base), "rope_scaling": _scaling_setting(model)}


def _scaling_setting(model: ModelConfig) -> dict[str, Any] | None:
    if model.use_rope_scaling:
        return {"rope_type": "llama3", "factor": model.rope_scaling_factor, **_LLAMA3}
    if model.rotary_seq_len_interpolation_factor is not None:
        return {"rope_type": "linear", "factor": model.rotary_seq_len_interpolation_factor}
    return None
