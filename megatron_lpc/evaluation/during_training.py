"""The evaluation of a run while it trains: every validation set under every latent, from one pass over its pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lpc.evaluation.latent_histograms import latent_histograms
from megatron_lpc.evaluation.marginal import metrics_by_latent
from megatron_lpc.evaluation.scoring import evaluation_sources, score_pairs
from megatron_lpc.model import unwrapped
from megatron_lpc.training.build import Run
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.histogram import Histogram


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is known of the validation sets after a step; the same on every rank."""

    metrics: dict[str, dict[str, float]]
    """By `DATA SET/LATENT`; the codes as their marginal."""
    histograms: dict[str, Histogram]
    """By `DATA SET/NAME`; see `latent_histograms`."""
    usage: Tensor
    """[K] fp64 weight of each code in the posterior, averaged over all pairs; K = 0 where there are no codes."""


def evaluate_run(run: Run) -> Evaluation:
    """Score the validation sets of a run.

    Collectives: per set those of `score_pairs` and of `_codes`.
    """
    config = run.config
    sources = evaluation_sources(config.latent)
    metrics: dict[str, dict[str, float]] = {}
    histograms: dict[str, Histogram] = {}
    posteriors = []
    for held_out in run.validation:
        steps = held_out.loader.evaluation(max_steps=config.logging.eval_iters)
        table = score_pairs(run.context, run.policy.chunks, steps, held_out.reference, sources, latent=config.latent)
        for source, of_source in metrics_by_latent(config.loss, table, sources).items():
            metrics[f"{held_out.name}/{source}"] = of_source
        # After the pass, for which the optimizer's ranks have gathered the weights of this step.
        codes = _codes(run) if config.latent.latent_mode == "lpc" else None
        for name, histogram in latent_histograms(table, codes).items():
            histograms[f"{held_out.name}/{name}"] = histogram
        posteriors.append(table.posterior_logits.softmax(dim=-1))
    usage = torch.cat(posteriors).mean(dim=0) if posteriors else torch.zeros(0)
    return Evaluation(metrics=metrics, histograms=histograms, usage=usage)


def _codes(run: Run) -> Tensor:
    """[K, H] fp64 on the CPU. Collectives: those of `from_last_stage`."""
    groups = run.context.groups
    head = unwrapped(run.policy.chunks[-1]).latent_head if groups.is_last_stage else None
    codes = None if head is None else head.codes.detach().double()
    return from_last_stage(codes, groups, run.platform.device).cpu()
