"""Latents from files in an evaluation: every pair is scored under the latent of one annotator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_lpc.config import ConfigError, LossConfig
from megatron_lpc.convert.hub.saved_latent import SavedLatent, codes_fingerprint, read_latent_of
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.marginal import MARGINAL, log_prior, mixture_metrics
from megatron_lpc.evaluation.pair_table import PairTable, table_metrics
from megatron_lpc.evaluation.scoring import report_sources

EXACT_SUFFIX = ", exact"
"""Of the name of a latent whose weights are those of the codes' likelihoods, not of the mean code."""


def open_latents(scorer: CheckpointScorer, paths: Sequence[Path]) -> dict[str, SavedLatent]:
    """The latents of files, named as these without their ending. Collectives: those of `CheckpointScorer.codes`.

    Raises:
        ConfigError: the model has no codes, a file cannot be read or is of another model, or two names are the same.
    """
    if not paths:
        return {}
    check_has_codes(scorer.config.latent.latent_mode, "--latent")
    codebook, code_unit = scorer.codes()
    latents: dict[str, SavedLatent] = {}
    reported = {*report_sources(scorer.config.latent), MARGINAL}
    for path in paths:
        try:
            latent = read_latent_of(path, codebook, code_unit)
        except ValueError as error:
            raise ConfigError(f"--latent {error}") from error
        if path.stem in latents or path.stem in reported:
            raise ConfigError(f"--latent {path}: the report has a latent `{path.stem}` already; rename the file")
        latents[path.stem] = latent
    return latents


def metrics_of_latents(
    scorer: CheckpointScorer, name: str, data: PairDataset, table: PairTable, latents: Mapping[str, SavedLatent]
) -> dict[str, dict[str, float]]:
    """Metrics over all pairs of a data set under each latent, as `Report.metrics` has them.

    A latent of posterior `support_exact` has a second entry with `EXACT_SUFFIX`: the prediction in which code k weighs
    p(k|x) times the latent's weight.

    Collectives: those of `CheckpointScorer.score`, once where there are latents.

    Args:
        table: the data set scored under the codes.
    """
    if not latents:
        return {}
    loss = scorer.config.loss
    metrics = {}
    weights = torch.stack([latent.weights for latent in latents.values()])
    scored = scorer.score(name, data, ("mixture",), weights[:, None])
    # Exact inference has posteriors where the codes are scored.
    scored = replace(scored, posterior_logits=table.posterior_logits)
    for place, (latent_name, latent) in enumerate(latents.items()):
        metrics[latent_name] = table_metrics(loss, scored, place)
        if latent.posterior == "support_exact":
            metrics[latent_name + EXACT_SUFFIX] = _exact_metrics(loss, table, latent)
    return metrics


def check_has_codes(latent_mode: str, flag: str) -> None:
    """Raise a ConfigError where a mode has no codes, of which a saved latent has the weights."""
    if latent_mode != "lpc":
        raise ConfigError(
            f"{flag}: a latent is saved as weights of codes, and a model with --latent-mode {latent_mode} has none"
        )


def codes_of(scorer: CheckpointScorer) -> str:
    """The fingerprint of a model's codes. Collectives: those of `CheckpointScorer.codes`."""
    return codes_fingerprint(*scorer.codes())


def _exact_metrics(loss: LossConfig, table: PairTable, latent: SavedLatent) -> dict[str, float]:
    smallest = torch.finfo(latent.weights.dtype).tiny
    return mixture_metrics(loss, table, log_prior(table) + latent.weights.clamp(min=smallest).log())
