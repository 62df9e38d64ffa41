"""Everything that a report says, made from the scored pairs: its JSON, and what the page is filled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_lpc.command_line import UserError
from megatron_lpc.evaluation.marginal import MARGINAL
from megatron_lpc.evaluation.pair_table import Responses, table_metrics
from megatron_lpc.evaluation.report.association import Association, association
from megatron_lpc.evaluation.report.calibration import Reliability, reliability
from megatron_lpc.evaluation.report.curves import Curves, read_curves
from megatron_lpc.evaluation.report.intervals import Share, shares
from megatron_lpc.evaluation.report.labels import pairs_by_label
from megatron_lpc.evaluation.report.options import ReportOptions
from megatron_lpc.evaluation.report.portraits import Portrait, active_codes, portraits
from megatron_lpc.evaluation.report.prompt_map import PromptMap, prompt_map
from megatron_lpc.evaluation.report.scored_pairs import ScoredPairs
from megatron_lpc.evaluation.report.switching import Switching, correct_by_latent, switching
from megatron_lpc.evaluation.run_folder import metrics_file
from megatron_lpc.evaluation.support_report import SUPPORT, SUPPORT_EXACT
from megatron_lpc.losses import CodeVerdict, code_verdict, implicit_rewards
from megatron_lpc.training.checkpoint_folder import resolve_checkpoint

MOST_ROWS = 200
"""Groups, and sources, with a row of their own in the table of accuracies: those of most pairs."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the report is of."""

    checkpoint: str
    data: dict[str, int]
    """Data set -> pairs."""
    loss_type: str
    beta: float
    num_codes: int
    """K."""
    latent_inference: str
    source_of: str | None
    """What tells the source of a pair: the name of a column, or `data set`; None where nothing does."""
    support_data: str | None
    """Where support sets are from; the data sets themselves when None."""


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """Accuracies on some of the pairs that count."""

    kind: str
    """`all`, `group` or `source`."""
    name: str
    pairs: int
    latents: dict[str, Share]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A report."""

    about: About
    verdict: CodeVerdict
    """On the pairs of the report."""
    metrics: dict[str, float]
    """Of the codes on these pairs, named as in training."""
    curves: Curves | None
    """None where no training is known, as of an import."""
    associations: list[Association]
    """Of codes with groups and with sources."""
    portraits: list[Portrait]
    weight_elsewhere: float
    """Mean posterior weight, in all, of the codes that are not active."""
    prompt_map: PromptMap
    switching: Switching
    calibration: list[Reliability]
    accuracy: list[AccuracyRow]


def find(scored: ScoredPairs, options: ReportOptions, support_data: str | None) -> Findings:
    """All parts of the report, of what was scored. No rank waits for another."""
    config, table = scored.config, scored.table
    assert config.checkpoint.load is not None
    load = Path(config.checkpoint.load)
    metrics = {name: value for name, value in table_metrics(config.loss, table, 0).items() if name.startswith("lpc/")}
    verdict = code_verdict(metrics, config.latent.codebook_size)
    if verdict is None:
        raise UserError(f"{load}: posterior and prior are not finite on these pairs; the training has diverged")
    file = metrics_file(load)
    correct = correct_by_latent(scored)
    codes = active_codes(scored)
    found = portraits(scored, options.examples)
    return Findings(
        about=About(
            checkpoint=str(resolve_checkpoint(load)),
            data={name: len(data) for name, data in scored.data.items()},
            loss_type=config.loss.loss_type,
            beta=config.loss.beta,
            num_codes=config.latent.codebook_size,
            latent_inference=config.latent.latent_inference,
            source_of=None if scored.sources is None else scored.sources.kind,
            support_data=support_data,
        ),
        verdict=verdict,
        metrics=metrics,
        curves=None if file is None else read_curves(file, config.latent.codebook_size),
        associations=[
            association(kind, scored.codes, labels, codes)
            for kind, labels in _labels(scored).items()
            if len(set(labels)) > 1
        ],
        portraits=found,
        weight_elsewhere=max(0.0, 1 - sum(each.weight for each in found)),
        prompt_map=prompt_map(scored, options.map),
        switching=switching(scored, correct, codes),
        calibration=_calibration(scored),
        accuracy=_accuracy(scored, correct),
    )


def _labels(scored: ScoredPairs) -> dict[str, Sequence[str]]:
    """What kind of label -> that of each pair."""
    labels: dict[str, Sequence[str]] = {}
    if scored.support is not None:
        labels["group"] = scored.support.groups
    if scored.sources is not None:
        labels["source"] = scored.sources.names
    return labels


def _calibration(scored: ScoredPairs) -> list[Reliability]:
    """Of the model's mean code, and of the groups' mixtures, on the pairs that count."""
    found = [reliability("prior", _margins(scored, None)[scored.counted])]
    if scored.support is not None:
        found.append(reliability(SUPPORT, _margins(scored, SUPPORT)[scored.counted]))
    return found


def _margins(scored: ScoredPairs, latent: str | None) -> Tensor:
    """[P] reward of chosen minus reward of rejected under the groups' mixtures, or else under the prior."""
    table = scored.table if latent is None or scored.support is None else scored.support.table
    of = Responses.under_latent(table, 0)
    rewards = implicit_rewards(scored.config.loss, of.logps, of.reference_logps, of.response_length)
    return rewards.chosen - rewards.rejected


def _accuracy(scored: ScoredPairs, correct: Mapping[str, Tensor]) -> list[AccuracyRow]:
    """On all pairs that count, those of each group, and those of each source."""
    wanted = ("prior", MARGINAL) if scored.support is None else ("prior", SUPPORT, SUPPORT_EXACT)
    columns = {name: correct[name] for name in wanted}
    rows = [("all", "all pairs", scored.counted)]
    for kind, labels in _labels(scored).items():
        masks = pairs_by_label(labels, scored.counted, MOST_ROWS)
        rows += [(kind, name, mask) for name, mask in masks.items()] if len(masks) > 1 else []
    return [
        AccuracyRow(kind=kind, name=name, pairs=int(mask.sum()), latents=shares(columns, scored.prompts, mask))
        for kind, name, mask in rows
    ]
