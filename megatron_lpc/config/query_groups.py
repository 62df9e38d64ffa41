"""Padding of attention by whole query groups of zeros, so that tensor parallel ranks can divide its heads.

Their queries, keys, values and columns of the output projection are 0, hence their outputs and all of their gradients,
and neither Adam nor weight decay moves a weight of 0 without a gradient: a padded model is the same function as the
original, and stays without a trace of the padding while it is trained.
"""

from __future__ import annotations

from dataclasses import replace

from megatron_lpc.config.derived import head_width
from megatron_lpc.config.schema import ModelConfig


def with_padded_query_groups(model: ModelConfig, padded: int) -> ModelConfig:
    """The same model with this many padded query groups, however many it has now; without padding for 0."""
    if padded == model.padded_query_groups:
        return model
    groups = _groups(model)
    added = padded - model.padded_query_groups
    return replace(
        model,
        num_attention_heads=model.num_attention_heads // groups * (groups + added),
        num_query_groups=groups + added,
        kv_channels=head_width(model),  # Unset, it would follow from the number of heads.
        padded_query_groups=padded,
    )


def padded_heads(model: ModelConfig) -> int:
    """Query heads of the padded query groups."""
    return model.num_attention_heads // _groups(model) * model.padded_query_groups


def _groups(model: ModelConfig) -> int:
    return model.num_query_groups or model.num_attention_heads
