"""The groups that have a vector of their own: those of the training data, and from then on those of the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_lpc.command_line import first_few
from megatron_lpc.config import Config, ConfigError, with_options
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint
from megatron_lpc.training.setup import RunContext


def with_known_groups(
    context: RunContext, train_data: PairDataset | None, resumed: Path | None
) -> tuple[RunContext, list[str]]:
    """The context of a training with `known_groups` filled in, and sentences about groups without a vector.

    An unset list is that of the checkpoint from which weights come, where that has one; else all groups of the training
    data, in the order of their names.

    Args:
        train_data: None for a stream, where `known_groups` is set.
        resumed: folder of the checkpoint that the run continues, if any.

    Raises:
        ConfigError: the head comes from `pretrained_checkpoint`, and that has other groups.
    """
    config = context.config
    if config.latent.latent_mode != "embedding":
        return context, []
    pretrained = config.checkpoint.pretrained_checkpoint
    start = resumed or (resolve_checkpoint(pretrained) if pretrained else None)
    saved = [] if start is None else saved_groups(start)
    in_data: list[str] = []
    if train_data is not None:
        with input_errors():
            in_data = sorted(train_data.group_numbers()[1])
    known = config.latent.known_groups or saved or in_data
    if saved and saved != known:
        raise ConfigError(f"--known-groups: {start} has vectors of other groups, or in another order; leave it unset")
    unknown = sorted(set(in_data) - set(known))
    notes = [f"Groups without a vector of their own: {first_few(unknown, 'groups')}."] if unknown else []
    return replace(context, config=with_options(config, known_groups=known)), notes


def with_saved_groups(config: Config) -> Config:
    """Options of an evaluation with the `known_groups` of the checkpoint that it loads, where they are unset."""
    load = config.checkpoint.load
    if config.latent.latent_mode != "embedding" or config.latent.known_groups or load is None:
        return config
    return with_options(config, known_groups=saved_groups(resolve_checkpoint(load)))


def saved_groups(folder: Path) -> list[str]:
    """Groups that a checkpoint has vectors of, in their order; empty where it has none.

    Args:
        folder: of one checkpoint, as `resolve_checkpoint` gives it.
    """
    names: list[str] = read_description(folder).get("options", {}).get("latent", {}).get("known_groups", [])
    return names
