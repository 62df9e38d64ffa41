"""The loss of a micro-batch under exact inference (`losses.exact`), which the model computes while scoring.

Shape legend: B pairs, K codes.
"""

from __future__ import annotations

import torch
from lpc_kernels import PairLoss
from torch import Tensor

from megatron_lpc.config import Config
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import (
    code_losses,
    exact_posterior_logits,
    marginal_loss,
    marginal_metrics,
    pool_episodes,
    prior_gradient_term,
)
from megatron_lpc.model import LatentOutput, PairScores


def make_marginal_pair_loss(config: Config, batch: PairBatch, latent: LatentOutput | None) -> PairLoss:
    """`marginal_loss` of some pairs of a micro-batch, by their log-probs under the K codes.

    The prior is a constant here, for `pair_logps` gives no gradient to what a pair loss encloses; `exact_loss` adds
    its gradient. Where the pairs of an episode share one code, each has an equal part of the episode's loss, and the
    pairs must be all those of the micro-batch (algorithm `recompute`).
    """
    log_prior = _log_prior(latent).detach()
    size = config.latent.posterior_context + 1

    def loss(logps: Tensor, pairs: Tensor) -> Tensor:
        responses = torch.cat([pairs, pairs + batch.num_pairs])
        reference = None if batch.reference_logps is None else batch.reference_logps[responses]
        logps, reference = _of_codes(config, logps.flatten(1), reference)
        losses = code_losses(config.loss, logps, reference, batch.response_length[responses])
        pooled, prior = pool_episodes(losses, log_prior[pairs], size)
        of_episodes = marginal_loss(pooled, prior, config.latent.exact_temperature)
        return of_episodes.repeat_interleave(size) / size

    return loss


def exact_loss(config: Config, batch: PairBatch, scores: PairScores) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss summed over the pairs, with the gradient of the prior, and the metrics.

    Metrics are those of `marginal_metrics`; the posterior among them is the exact one.
    """
    assert scores.loss is not None
    assert scores.pair_losses is not None
    assert scores.latent is not None
    assert scores.latent.prior_logits is not None
    temperature = config.latent.exact_temperature
    log_prior = _log_prior(scores.latent)
    logps, reference = _of_codes(config, scores.logps.detach(), batch.reference_logps)
    losses = code_losses(config.loss, logps, reference, batch.response_length)
    size = config.latent.posterior_context + 1
    losses, log_prior = pool_episodes(losses, log_prior, size)
    posterior_logits = exact_posterior_logits(losses, log_prior, temperature).detach()
    metrics = marginal_metrics(
        config.loss,
        scores.pair_losses,
        logps,
        reference,
        batch.response_length,
        scores.latent.prior_logits,
        posterior_logits.repeat_interleave(size, dim=0),
    )
    return scores.loss + prior_gradient_term(posterior_logits, log_prior, temperature), metrics


def _of_codes(config: Config, logps: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Log-probs [K, 2B] under the codes and [2B] under the reference.

    With a frozen backbone there is one latent more than codes, and the last is the reference.
    """
    num_codes = config.latent.codebook_size
    return logps[:num_codes], logps[-1].detach() if len(logps) > num_codes else reference


def _log_prior(latent: LatentOutput | None) -> Tensor:
    """[B, K] log p(k|x)."""
    assert latent is not None
    assert latent.prior_logits is not None
    return latent.prior_logits.log_softmax(dim=-1)
