"""Refuse at the start what cannot work: options that contradict each other, the number of processes, or the device."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_lpc.config.idle import idle_options
from megatron_lpc.config.options import ConfigError
from megatron_lpc.config.ranges import out_of_range
from megatron_lpc.config.rules import episodes, groups, latent, logging, model, parallel, run
from megatron_lpc.config.schema import Config


def validate(config: Config, world_size: int, device_type: str | None = None) -> None:
    """Refuse options that contradict each other, the number of processes or the device, or that have no effect.

    Args:
        world_size: processes of the run.
        device_type: `cpu` or `cuda`, as the platform chose; `--device` when not given.

    Raises:
        ConfigError: every broken rule, one line per rule.
    """
    # The rules below divide by these values: ranges come first, by themselves.
    _refuse(out_of_range(config))
    _refuse(
        [
            *model.attention(config),
            *model.experts(config),
            *model.layer_patterns(config),
            *model.portable_layers(config),
            *model.fp8(config),
            *parallel.processes(config, world_size),
            *parallel.tensor_parallel(config),
            *parallel.pipeline_parallel(config),
            *parallel.overlap(config),
            *parallel.recompute(config),
            *parallel.batches(config, world_size),
            *run.files(config),
            *run.streaming(config),
            *run.lengths(config),
            *run.packing(config),
            *run.objective(config),
            *run.frozen_backbone(config),
            *latent.swap_guidance(config),
            *latent.exact_inference(config),
            *run.learning_rates(config),
            *run.device_support(config, device_type or config.parallel.device),
            *run.flex_attention(config, device_type or config.parallel.device),
            *logging.profiling(config, world_size),
            *logging.generations(config),
            *idle_options(config),
        ]
    )


def validate_episodes(config: Config, dp_size: int) -> None:
    """Refuse options of a training whose latent reads the groups of its pairs.

    Raises:
        ConfigError: every broken rule, one line per rule.
    """
    _refuse([*episodes.episodes(config, dp_size), *groups.group_vectors(config)])


def validate_data(config: Config) -> None:
    """Refuse values out of range, options without effect, and the data options that cannot work, whatever model and
    processes they are for.

    Raises:
        ConfigError: every broken rule, one line per rule.
    """
    _refuse([*out_of_range(config), *run.files(config), *run.lengths(config), *idle_options(config)])


def validate_values(config: Config) -> None:
    """Refuse values out of range and options without effect, by themselves.

    Raises:
        ConfigError: every broken rule, one line per rule.
    """
    _refuse([*out_of_range(config), *idle_options(config)])


def validate_vocab(config: Config, tokenizer_vocab_size: int) -> None:
    """Refuse a vocabulary that the tokenizer exceeds or that tensor parallel ranks cannot split.

    Args:
        tokenizer_vocab_size: token ids of the tokenizer, special ones included.

    Raises:
        ConfigError: every broken rule, one line per rule.
    """
    _refuse(model.vocabulary(config, tokenizer_vocab_size))


def _refuse(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise ConfigError("\n".join(lines))
