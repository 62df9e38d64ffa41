"""Episodes of a run: pairs of one group from which the posterior of each other one is made."""

from __future__ import annotations

from megatron_lpc.command_line import first_few
from megatron_lpc.config import Config, ConfigError
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.episodes import EpisodeIndex
from megatron_lpc.data.input_errors import input_errors


def open_episodes(config: Config, data: PairDataset) -> tuple[EpisodeIndex, list[str]]:
    """The episodes of training data, and sentences about the pairs that are in none.

    Raises:
        ConfigError: no group has as many pairs as an episode.
    """
    context = config.latent.posterior_context
    with input_errors():
        groups, names = data.group_numbers()
        prompts = data.prompt_checksums()
    try:
        index = EpisodeIndex.of(groups, prompts, context + 1)
    except ValueError as error:
        raise ConfigError(f"--posterior-context {context}: {error}; lower it") from error
    return index, _notes(context, index, names)


def _notes(context: int, index: EpisodeIndex, names: list[str]) -> list[str]:
    notes = []
    if index.left_out:
        notes.append(
            f"--posterior-context {context}: {index.left_out} of {len(index.members)} pairs are in no episode of "
            f"{index.size} pairs of their group in an epoch."
        )
    too_small = [names[number] for number in index.too_small]
    if too_small:
        notes.append(f"Groups of fewer than {index.size} pairs, never trained on: {first_few(too_small, 'groups')}.")
    return notes
