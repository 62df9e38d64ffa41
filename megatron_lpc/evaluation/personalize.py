"""The latent of an annotator from labelled pairs, and the pairs that would tell most beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_lpc.config import Config, training_only_options, with_defaults
from megatron_lpc.convert.hub.saved_latent import SavedLatent, write_latent
from megatron_lpc.data.cache import read_bad_rows
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.source import Row, read_rows
from megatron_lpc.evaluation.certainty import Certainty, certainty
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.evidence import Evidence
from megatron_lpc.evaluation.marginal import label_probabilities, log_prior
from megatron_lpc.evaluation.personal_options import PersonalOptions
from megatron_lpc.evaluation.saved_latents import codes_of
from megatron_lpc.evaluation.selection import Selected, select_pairs
from megatron_lpc.files import whole_file, write_text
from megatron_lpc.training.setup import start_distributed, stop_distributed


@dataclass(frozen=True, kw_only=True)
class SelectedRow:
    """A selected pair as it stands in its source."""

    row: Row
    selected: Selected


@dataclass(frozen=True, kw_only=True)
class Personal:
    """What was found."""

    latent: SavedLatent | None
    """None without labelled pairs."""
    certainty: Certainty | None
    selected: list[SelectedRow]
    """Pairs of the pool, the one to label first first; empty without a pool."""


def personalize(config: Config, options: PersonalOptions) -> Personal:
    """Estimate the latent of the annotator whose pairs are given, and select pairs of the pool.

    Collectives: those of `CheckpointScorer`; all ranks return the same.

    Raises:
        ConfigError: the options cannot work, or do not fit the checkpoint; the pairs cannot be read.
    """
    scorer = CheckpointScorer(start_distributed(with_defaults(config, training_only_options("logging"))))
    latent = found = None
    if options.pairs is not None:
        data = scorer.open("pairs", options.pairs)
        table = scorer.score("pairs", data, ("codes",))
        evidence = Evidence.of(options.posterior, scorer.config, table)
        found = certainty(evidence, label_probabilities(scorer.config.loss, table))
        latent = SavedLatent(
            weights=evidence.weights,
            interval=found.interval,
            pairs=len(data),
            posterior=options.posterior,
            codes=codes_of(scorer),
        )
    selected: list[SelectedRow] = []
    if options.pool is not None and options.select is not None:
        selected = _select(scorer, options.pool, options.select, None if latent is None else latent.weights)
    stop_distributed()
    return Personal(latent=latent, certainty=found, selected=selected)


def _select(scorer: CheckpointScorer, pool: str, count: int, weights: Tensor | None) -> list[SelectedRow]:
    """`weights`: [K] of the codes; None for the prior, averaged over the pool."""
    data = scorer.open("pool", pool)
    table = scorer.score("pool", data, ("codes",))
    if weights is None:
        weights = log_prior(table).exp().mean(0)
    chosen = select_pairs(weights, label_probabilities(scorer.config.loss, table), count)
    return _rows_of(data, pool, chosen)


def _rows_of(data: PairDataset, source: str, chosen: Sequence[Selected]) -> list[SelectedRow]:
    """The rows of examples; a data set has all rows of its source in order but the bad ones."""
    bad: set[tuple[str, int]] = set()
    if data.num_bad_rows:
        bad = {(row.file, row.line) for row in read_bad_rows(data.bad_rows_file)}
    wanted = {selected.example_index for selected in chosen}
    rows: dict[int, Row] = {}
    example_index = 0
    for row in read_rows(source):
        if not isinstance(row, Row) or (row.location.file, row.location.line) in bad:
            continue
        if example_index in wanted:
            rows[example_index] = row
        example_index += 1
    return [SelectedRow(row=rows[selected.example_index], selected=selected) for selected in chosen]


def save_latent(path: Path, latent: SavedLatent) -> None:
    """Write a latent; the file appears whole."""
    with whole_file(path) as temporary:
        write_latent(temporary, latent)


def save_selected(path: Path, selected: Sequence[SelectedRow]) -> None:
    """Write rows as JSON lines, each with `information_nats` and `gain_nats`; the file appears whole."""
    lines = []
    for one in selected:
        nats = {"information_nats": one.selected.information, "gain_nats": one.selected.gain}
        lines.append(json.dumps({**one.row.values, **nats}, ensure_ascii=False, default=str) + "\n")
    write_text(path, "".join(lines))
