"""The latent part of the loss: KL to the prior, and what keeps the codes from being ignored.

Shape legend: B pairs of the micro-batch, K codes. Everything is in nats unless a name says bits.
"""

from __future__ import annotations

import math

from torch import Tensor

from megatron_lpc.config.schema import LatentConfig


def kl_with_free_bits(kl: Tensor, free_bits: float) -> Tensor:
    """max(KL, free bits) of each pair: [B] -> [B]. A pair below the threshold has no gradient.

    Per pair, as the latent is one variable (arXiv 1606.04934, appendix C.8, with a single group and no batch average): an
    average over pairs would let some collapse on the credit of others.
    """
    return kl.clamp(min=free_bits * math.log(2))


def usage_entropy(posterior_logits: Tensor) -> Tensor:
    """Entropy of the mean posterior over the micro-batch: [B, K] -> scalar in [0, ln K].

    High when the pairs together use all codes; says nothing about how sure each pair is.
    """
    log_usage = posterior_logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(posterior_logits))
    return -(log_usage.exp() * log_usage).sum()


def latent_loss(config: LatentConfig, kl_weight: float, kl: Tensor, posterior_logits: Tensor) -> Tensor:
    """lambda max(KL(q || p), free bits) - usage_entropy_weight H(mean q), to be added to the preference loss: [B].

    The bonus belongs to the micro-batch; each pair carries an equal share, so that a mean over pairs gives it once.

    Args:
        config: free bits and the bonus's weight.
        kl_weight: lambda at this step, from `LatentSchedule`.
        kl: [B] KL(q || p) of each pair.
        posterior_logits: [B, K].
    """
    loss = kl_weight * kl_with_free_bits(kl, config.kl_free_bits)
    if config.usage_entropy_weight:
        loss = loss - config.usage_entropy_weight * usage_entropy(posterior_logits)
    return loss
