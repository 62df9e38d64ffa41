"""The padded query groups of a run are those of its checkpoint: one configuration serves a model however imported."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import warn
from megatron_lpc.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    ModelConfig,
    with_options,
    with_padded_query_groups,
)
from megatron_lpc.training.checkpoint_folder import (
    complete_checkpoints,
    holds_checkpoint,
    read_description,
    resolve_checkpoint,
)

_FOLLOWED = ("num_attention_heads", "num_query_groups", "kv_channels", "padded_query_groups")


def follow_padding(config: Config) -> Config:
    """The options with the padding of the checkpoint that the run loads, where they state the same heads without it.

    Raises:
        ConfigError: the checkpoint is incomplete or cannot be read.
    """
    folder = _loaded_folder(config.checkpoint)
    if folder is None:
        return config
    options = _description(folder, config.checkpoint).get("options", {}).get("model")
    if options is None:
        return config
    saved = ModelConfig(**{name: options[name] for name in _FOLLOWED if name in options})
    stated = config.model
    if saved.padded_query_groups == stated.padded_query_groups:
        return config
    if _heads(with_padded_query_groups(saved, stated.padded_query_groups)) != _heads(stated):
        return config  # Another model, which loading refuses by name.
    followed = with_padded_query_groups(stated, saved.padded_query_groups)
    warn(
        f"{folder}: has --padded-query-groups {followed.padded_query_groups}, "
        f"so the run has {followed.num_attention_heads} attention heads in {followed.num_query_groups} groups"
    )
    return with_options(config, **{name: getattr(followed, name) for name in _FOLLOWED})


def _loaded_folder(checkpoint: CheckpointConfig) -> str | None:
    resumed = checkpoint.save if checkpoint.load == "auto" else checkpoint.load
    folders = (resumed, checkpoint.pretrained_checkpoint)
    return next((folder for folder in folders if folder is not None and holds_checkpoint(folder)), None)


def _description(folder: str, checkpoint: CheckpointConfig) -> dict[str, Any]:
    """Of the checkpoint in this folder; with `--load auto` of any that is complete, for the newest may be damaged."""
    if checkpoint.load != "auto" or folder != checkpoint.save:
        return read_description(resolve_checkpoint(folder))
    for complete in reversed(complete_checkpoints(Path(folder))):
        with suppress(ConfigError):
            return read_description(complete)
    return read_description(Path(folder))


def _heads(model: ModelConfig) -> tuple[int, int]:
    return model.num_attention_heads, model.num_query_groups or model.num_attention_heads
