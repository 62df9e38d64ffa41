"""A scored data set under the codes themselves: the marginal over them, and the exact posterior.

Needs a table whose codes were scored (`PairTable.code_logps`). Likelihoods of labels are those of `losses.exact`.

Shape legend: P pairs, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_lpc.config import LatentConfig, LossConfig
from megatron_lpc.evaluation.pair_table import PairTable, Responses, table_metrics
from megatron_lpc.evaluation.support import GroupLatents
from megatron_lpc.losses import (
    code_losses,
    exact_posterior_logits,
    finish_metrics,
    label_probability,
    marginal_loss,
    marginal_metrics,
    prefers_chosen,
)
from megatron_lpc.model import LatentSource

MARGINAL = "marginal"
"""Name of the marginal over codes among the latents of a report."""


def metrics_by_latent(
    loss: LossConfig, table: PairTable, sources: Sequence[LatentSource]
) -> dict[str, dict[str, float]]:
    """Metrics over all pairs under each of the latents that a table was scored for, the codes as `marginal`."""
    latents = [source for source in sources if source != "codes"]
    metrics: dict[str, dict[str, float]] = {
        latent: table_metrics(loss, table, index) for index, latent in enumerate(latents)
    }
    if "codes" in sources:
        metrics[MARGINAL] = mixture_metrics(loss, table, log_prior(table))
    return metrics


def mixture_metrics(loss: LossConfig, table: PairTable, log_weights: Tensor) -> dict[str, float]:
    """`losses.marginal_metrics` where code k weighs w_k; `loss` among them is -log sum_k w_k exp(-loss_k).

    Args:
        log_weights: [P, K] log weights of the codes for each pair, up to a constant per pair.
    """
    of = Responses.under_codes(table)
    losses = code_losses(loss, of.logps, of.reference_logps, of.response_length)
    return finish_metrics(
        marginal_metrics(
            loss,
            marginal_loss(losses, log_weights.log_softmax(dim=-1), temperature=1.0),
            of.logps,
            of.reference_logps,
            of.response_length,
            log_weights,
            table.posterior_logits,
        )
    )


def log_prior(table: PairTable) -> Tensor:
    """[P, K] log p(k|x)."""
    return table.prior_logits.log_softmax(dim=-1)


def log_likelihoods(loss: LossConfig, table: PairTable) -> Tensor:
    """[P, K] log-likelihood of each pair's label under each code."""
    of = Responses.under_codes(table)
    return -code_losses(loss, of.logps, of.reference_logps, of.response_length).T


def label_probabilities(loss: LossConfig, table: PairTable) -> Tensor:
    """[P, K] probability of each pair's label under each code."""
    of = Responses.under_codes(table)
    return label_probability(loss, of.logps, of.reference_logps, of.response_length)


def mixture_is_correct(loss: LossConfig, table: PairTable, log_weights: Tensor) -> Tensor:
    """[P] bool: pairs whose label is likelier than the opposite one under a mixture of codes.

    Args:
        log_weights: [P, K] log weights of the codes for each pair, up to a constant per pair.
    """
    of = Responses.under_codes(table)
    return prefers_chosen(loss, log_weights, of.logps, of.reference_logps, of.response_length)


def swapped_is_correct(
    loss: LossConfig, table: PairTable, latents: GroupLatents, groups: Sequence[str]
) -> Tensor | None:
    """[P] fp64 share of the other groups by whose exact posterior a pair is ordered as labelled; None without others.

    Args:
        latents: what the support sets say of each group.
        groups: group of each pair.
    """
    own = log_prior(table)
    swapped = [
        mixture_is_correct(loss, table, latents.exact_log_weights(others, own)) for others in latents.swaps(groups)
    ]
    return torch.stack(swapped).double().mean(0) if swapped else None


def with_exact_posterior(latent: LatentConfig, loss: LossConfig, table: PairTable) -> PairTable:
    """A table of a model of exact inference with the posterior that its objective implies."""
    losses = -log_likelihoods(loss, table).T
    return replace(table, posterior_logits=exact_posterior_logits(losses, log_prior(table), latent.exact_temperature))
