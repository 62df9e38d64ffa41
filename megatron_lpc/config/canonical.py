"""One form of the options of a model: sizes that follow from others are set, what makes no difference is unset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_lpc.config.derived import head_width, layer_windows, layers_without_rope
from megatron_lpc.config.schema import ModelConfig


def canonical(model: ModelConfig) -> ModelConfig:
    """The same model with its options in that form, in which two equal models have equal options."""
    scalar = model.query_pre_attn_scalar
    windows = layer_windows(model)
    if not any(windows):
        model = replace(model, sliding_window=None, rope_local_base_freq=None)
    return replace(
        model,
        num_query_groups=model.num_query_groups or model.num_attention_heads,
        kv_channels=head_width(model),
        query_pre_attn_scalar=None if scalar == head_width(model) else scalar,
        no_rope_freq=no_rope_freq(layers_without_rope(model)),
        window_attn_skip_freq=window_attn_skip_freq(windows),
    )


def window_attn_skip_freq(windows: Sequence[int | None]) -> list[int] | None:
    """The option for the sliding window of each layer (None: without); None where all layers have it, or no layer."""
    if not any(windows):
        return None
    return _shortest([int(window is not None) for window in windows], exception=0)


def no_rope_freq(without_rope: Sequence[bool]) -> list[int] | None:
    """The option for whether each layer goes without rotary position embedding; None where none does."""
    return _shortest([int(without) for without in without_rope], exception=1)


def _shortest(flags: list[int], exception: int) -> list[int] | None:
    if exception not in flags:
        return None
    period = flags.index(exception) + 1
    is_periodic = all((flag == exception) == (number % period == 0) for number, flag in enumerate(flags, start=1))
    return [period] if is_periodic else flags
