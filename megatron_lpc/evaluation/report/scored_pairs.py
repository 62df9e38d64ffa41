"""What the model says of the pairs of a report: all that needs the model, on all ranks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.code_latents import latents_of_codes
from megatron_lpc.evaluation.options import SupportOptions, without_training
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.report.options import ReportOptions
from megatron_lpc.evaluation.support import GroupLatents
from megatron_lpc.training.setup import start_distributed, stop_distributed

MOST_ON_MAP = 1000
"""Pairs on the map, at most."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where each pair is from."""

    kind: str
    """What tells it: the name of a column, or `data set`."""
    names: list[str]
    """[P]."""


@dataclass(frozen=True, kw_only=True)
class SupportScores:
    """The pairs under the latents of their groups."""

    groups: list[str]
    """[P] group of each pair."""
    pairs: int
    """Labelled pairs that each latent is from."""
    latents: GroupLatents
    table: PairTable
    """Under each pair's own group's mixture, latent 0."""
    is_query: Tensor
    """[P] bool: pairs whose prompt is not in the support set of their group; some pair is."""


@dataclass(frozen=True, kw_only=True)
class ScoredPairs:
    """P pairs, of all data sets of a report."""

    config: Config
    tokenizer: Tokenizer
    data: dict[str, PairDataset]
    table: PairTable
    """Under the prior, latent 0, and every code."""
    prompts: Tensor
    """[P] int64: equal for equal prompts."""
    support: SupportScores | None
    """None without groups."""
    sources: Sources | None
    """None where all pairs are from one place."""
    code_logits: Tensor
    """[K, V] z W^T of each code."""
    on_map: Tensor
    """[M] int64 places among the P of the pairs that are on the map, ascending."""
    prompt_states: Tensor
    """[M, H] h_x of their prompts."""

    @property
    def codes(self) -> Tensor:
        """[P] int64 the posterior's most probable code of each pair."""
        return self.table.posterior_logits.argmax(-1)

    @property
    def counted(self) -> Tensor:
        """[P] bool: the pairs that accuracies are over."""
        return torch.ones(len(self.table), dtype=torch.bool) if self.support is None else self.support.is_query

    def pair(self, place: int) -> EncodedPair:
        """One of the P pairs."""
        for data in self.data.values():
            if place < len(data):
                return data[place]
            place -= len(data)
        raise IndexError(f"pair {place} is behind the last")


def score_for_report(config: Config, support: SupportOptions, options: ReportOptions) -> ScoredPairs:
    """Score every pair of `config.data.valid_data`, whole; the same on all ranks, which have left all groups then.

    Collectives: those of `CheckpointScorer`.

    Raises:
        ConfigError: the options cannot work, or do not fit the checkpoint; there is no query pair; the rows with a
            source are others than those without.
    """
    scorer = CheckpointScorer(start_distributed(without_training(config)))
    data = {name: scorer.open(name, source) for name, source in config.data.valid_data.items()}
    table = PairTable.joined([scorer.score(name, of_name, ("prior", "codes")) for name, of_name in data.items()])
    numbers = _PromptNumbers()
    prompts = [numbers.of(of_name[index]) for of_name in data.values() for index in range(len(of_name))]
    scores = None
    if config.data.group_column is not None:
        scores = _score_support(scorer, data, table, prompts, numbers, support)
    on_map = sorted(random.Random(SEED).sample(range(len(table)), min(MOST_ON_MAP, len(table))))
    scored = ScoredPairs(
        config=scorer.config,
        tokenizer=scorer.tokenizer,
        data=data,
        table=table,
        prompts=torch.tensor(prompts),
        support=scores,
        sources=_sources(scorer, data, options),
        code_logits=scorer.code_logits(),
        on_map=torch.tensor(on_map),
        prompt_states=_prompt_states(scorer, data, on_map),
    )
    stop_distributed()
    return scored


class _PromptNumbers:
    """Numbers of prompts as token ids, in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def of(self, pair: EncodedPair) -> int:
        return self._numbers.setdefault(np.asarray(pair.prompt, np.int32).tobytes(), len(self._numbers))


def _score_support(
    scorer: CheckpointScorer,
    data: dict[str, PairDataset],
    table: PairTable,
    prompts: Sequence[int],
    numbers: _PromptNumbers,
    support: SupportOptions,
) -> SupportScores:
    groups = [str(group) for of_name in data.values() for group in of_name.groups]
    if support.data is None:
        latents = latents_of_codes(scorer.config, table, groups, prompts, support)
    else:
        other = scorer.open("support", support.data)
        latents = latents_of_codes(
            scorer.config,
            scorer.score("support", other, ("prior", "codes")),
            [str(group) for group in other.groups],
            [numbers.of(other[index]) for index in range(len(other))],
            support,
        )
    is_query = latents.query_pairs(groups, prompts)
    if not is_query.any():
        raise ConfigError(
            f"--data: no pair is left to evaluate after {support.pairs} support pairs per group; lower "
            "--support-pairs, draw them from other data with --support-data, or set --group-column none"
        )
    mixtures = latents.mixture_of_each(groups).split([len(of_name) for of_name in data.values()])
    tables = [
        scorer.score(name, of_name, ("mixture",), mixture)
        for (name, of_name), mixture in zip(data.items(), mixtures, strict=True)
    ]
    return SupportScores(
        groups=groups, pairs=support.pairs, latents=latents, table=PairTable.joined(tables), is_query=is_query
    )


def _sources(scorer: CheckpointScorer, data: dict[str, PairDataset], options: ReportOptions) -> Sources | None:
    """By the column that the options name, or else by data set."""
    column = options.source_column
    if column is None:
        names = [name for name, of_name in data.items() for _ in range(len(of_name))]
        return Sources(kind="data set", names=names) if len(data) > 1 else None
    names = []
    for name, of_name in data.items():
        with_source = scorer.open(name, scorer.config.data.valid_data[name], group_column=column)
        if not np.array_equal(with_source.lengths, of_name.lengths):
            raise ConfigError(
                f"--source-column {column}: other rows of {name} are unusable with this column than without; fix them"
            )
        names += [str(source) for source in with_source.groups]
    return Sources(kind=column, names=names)


def _prompt_states(scorer: CheckpointScorer, data: dict[str, PairDataset], places: Sequence[int]) -> Tensor:
    """[M, H] of the pairs at these places among all, ascending."""
    states = []
    first = 0
    for of_name in data.values():
        examples = [place - first for place in places if first <= place < first + len(of_name)]
        if examples:
            states.append(scorer.prompt_states(of_name, examples))
        first += len(of_name)
    return torch.cat(states)
