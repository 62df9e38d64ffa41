"""Evaluate a checkpoint on several data sets: accuracy under each latent, information of the codes, support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.convert.hub.saved_latent import SavedLatent
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.code_latents import correct_by_codes, latents_of_codes
from megatron_lpc.evaluation.information import mutual_information
from megatron_lpc.evaluation.marginal import metrics_by_latent
from megatron_lpc.evaluation.options import SupportOptions, has_groups, without_training
from megatron_lpc.evaluation.pair_table import PairTable, is_correct
from megatron_lpc.evaluation.results import Report, SupportReport
from megatron_lpc.evaluation.saved_latents import metrics_of_latents, open_latents
from megatron_lpc.evaluation.scoring import report_sources
from megatron_lpc.evaluation.support import GroupLatents, draw_support, prompts_of_support
from megatron_lpc.evaluation.support_report import SUPPORT, report_support
from megatron_lpc.losses import code_verdict
from megatron_lpc.model import LatentSource
from megatron_lpc.training.setup import start_distributed, stop_distributed


def evaluate(config: Config, support: SupportOptions, latents: Sequence[Path] = ()) -> dict[str, Report]:
    """Evaluate the checkpoint `config.checkpoint.load` on every data set of `config.data.valid_data`, whole.

    Options that only training reads have no effect. `Report.information` needs codes and groups, `Report.support`
    groups and a latent that can be estimated for one; they are None without.

    Collectives: those of `CheckpointScorer`; all ranks return the same reports.

    Args:
        latents: files of saved latents, under each of which every data set is scored too.

    Raises:
        ConfigError: the options cannot work, or do not fit the checkpoint; a data set has no query pair.
    """
    scorer = CheckpointScorer(start_distributed(without_training(config)))
    saved = open_latents(scorer, latents)
    group_latents = None
    if has_groups(config) and support.data is not None:
        data = scorer.open("support", support.data)
        sources: dict[str, LatentSource] = {"lpc": "codes", "gaussian": "prior"}
        source = sources.get(config.latent.latent_mode)
        table = None if source is None else scorer.score("support", data, (source,))
        group_latents = _estimate_group_latents(scorer, data, table, support)
    reports = {
        name: _evaluate_data(scorer, name, source, support, group_latents, saved)
        for name, source in config.data.valid_data.items()
    }
    stop_distributed()
    return reports


def _evaluate_data(
    scorer: CheckpointScorer,
    name: str,
    source: str,
    support: SupportOptions,
    group_latents: GroupLatents | None,
    saved: Mapping[str, SavedLatent],
) -> Report:
    """`group_latents`: from other data; None to estimate them from this data set."""
    config = scorer.config
    data = scorer.open(name, source)
    sources = report_sources(config.latent)
    table = scorer.score(name, data, sources)
    metrics = metrics_by_latent(config.loss, table, sources)
    metrics |= metrics_of_latents(scorer, name, data, table, saved)
    verdict = code_verdict(metrics[sources[0]], config.latent.codebook_size)
    report = Report(pairs=len(data), metrics=metrics, information=None, support=None, verdict=verdict)
    if not has_groups(config):
        return report
    if group_latents is None:
        group_latents = _estimate_group_latents(scorer, data, table, support)
    information = None
    if table.num_codes:
        information = mutual_information(table.posterior_logits.argmax(-1), _groups(data))
    return replace(
        report,
        information=information,
        support=_support_report(scorer, name, data, table, group_latents, support),
    )


def _support_report(
    scorer: CheckpointScorer,
    name: str,
    data: PairDataset,
    table: PairTable,
    group_latents: GroupLatents,
    support: SupportOptions,
) -> SupportReport:
    """Score a data set once more, each pair under its group's latent, and report accuracy on the query pairs.

    Raises:
        ConfigError: there is no query pair.
    """
    groups = _groups(data)
    is_query = group_latents.query_pairs(groups, _prompts(data))
    if not is_query.any():
        raise ConfigError(
            f"--valid-data {name}: no pair is left to evaluate after {support.pairs} support pairs per group; "
            "lower --support-pairs, or draw them from other data with --support-data"
        )
    mixture = group_latents.mixture_of_each(groups)
    under_mixture = scorer.score(name, data, ("mixture",), mixture)
    loss = scorer.config.loss
    latents = [source for source in report_sources(scorer.config.latent) if source != "codes"]
    correct: dict[str, Tensor] = {latent: is_correct(loss, table, index) for index, latent in enumerate(latents)}
    correct[SUPPORT] = is_correct(loss, under_mixture, 0)
    if table.num_codes:
        correct |= correct_by_codes(loss, table, group_latents, groups)
    return report_support(correct, groups=groups, is_query=is_query, latents=group_latents)


def _estimate_group_latents(
    scorer: CheckpointScorer, data: PairDataset, table: PairTable | None, support: SupportOptions
) -> GroupLatents:
    """`table`: scored, under the codes where there are some; not read where vectors are fitted."""
    config, groups, prompts = scorer.config, _groups(data), _prompts(data)
    if config.latent.latent_mode == "embedding":
        support_sets = draw_support(groups, support.pairs, support.seed)
        return GroupLatents(
            mixtures=scorer.fit_group_vectors(data, support_sets, support),
            log_likelihoods={},
            prompts=prompts_of_support(prompts, support_sets),
        )
    assert table is not None
    if config.latent.latent_mode == "gaussian":
        support_sets = draw_support(groups, support.pairs, support.seed)
        return GroupLatents(
            mixtures={group: table.latent_mean[indices].mean(0) for group, indices in support_sets.items()},
            log_likelihoods={},
            prompts=prompts_of_support(prompts, support_sets),
        )
    return latents_of_codes(config, table, groups, prompts, support)


def _groups(data: PairDataset) -> list[str]:
    return [str(group) for group in data.groups]


def _prompts(data: PairDataset) -> list[tuple[int, ...]]:
    """Prompts as token ids, so that prompts which the model cannot tell apart are equal."""
    return [tuple(data[index].prompt) for index in range(len(data))]
