"""The options of a model as a conversion compares them: in one form, and only those that concern the weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megatron_lpc.command_line import flag_of
from megatron_lpc.config import ModelConfig, canonical, options_of_conversion


def weight_options(model: ModelConfig) -> dict[str, Any]:
    """Options that define what the weights mean, without those of their initialization and training."""
    compared = options_of_conversion()
    return {name: value for name, value in asdict(model).items() if name in compared}


def differing_options(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Names of the options in which two models differ, except the longest sequence."""
    left = weight_options(canonical(one))
    right = weight_options(canonical(other))
    return [name for name in left if left[name] != right[name] and name != "max_position_embeddings"]


def as_flags(names: list[str]) -> str:
    """Options as a user types them: `--rotary-base, --norm-epsilon`."""
    return ", ".join(map(flag_of, names))
