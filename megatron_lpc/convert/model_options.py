"""The options of a model as a conversion compares them: completed, and only those that concern the weights."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from megatron_lpc.command_line import flag_of
from megatron_lpc.config import ModelConfig, head_width, options_of_conversion


def weight_options(model: ModelConfig) -> dict[str, Any]:
    """Options that define what the weights mean, without those of their initialization and training."""
    compared = options_of_conversion()
    return {name: value for name, value in asdict(model).items() if name in compared}


def complete(model: ModelConfig) -> ModelConfig:
    """The same model with every option set whose default follows from other options."""
    return replace(
        model,
        num_query_groups=model.num_query_groups or model.num_attention_heads,
        kv_channels=head_width(model),
    )


def differing_options(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Names of the options in which two models differ, except the longest sequence."""
    left = weight_options(complete(one))
    right = weight_options(complete(other))
    return [name for name in left if left[name] != right[name] and name != "max_position_embeddings"]


def as_flags(names: list[str]) -> str:
    """Options as a user types them: `--rotary-base, --norm-epsilon`."""
    return ", ".join(map(flag_of, names))
