"""The latent part of the loss: KL to the prior, and what keeps the codes from being ignored.

Shape legend: B pairs of the micro-batch, K codes. Everything is in nats unless a name says bits.
"""

from __future__ import annotations

import math

from torch import Tensor

from megatron_lpc.config.schema import LatentConfig


def kl_with_free_bits(kl: Tensor, free_bits: float) -> Tensor:
    """max(KL, free bits) per pair: [B] -> [B]. A pair below the threshold has no gradient.

    Per pair, because the latent is one variable (arXiv 1606.04934, appendix C.8, with a single group and no average
    over the batch): with an average over pairs, pairs far above the threshold would let others collapse.

    Args:
        kl: [B] KL(q || p) in nats.
        free_bits: threshold in bits.
    """
    return kl.clamp(min=free_bits * math.log(2))


def usage_entropy(posterior_logits: Tensor) -> Tensor:
    """Entropy of the mean posterior over the micro-batch: [B, K] -> scalar in [0, ln K].

    High when the pairs together use all codes; it says nothing about how certain the posterior of each pair is.
    """
    log_usage = posterior_logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(posterior_logits))
    return -(log_usage.exp() * log_usage).sum()


def swap_divergence(logits: Tensor, swapped_logits: Tensor) -> Tensor:
    """(KL(q' || s) + KL(s || q')) / 2 per pair: [B, K], [B, K] -> [B].

    s is the posterior of the pair with chosen and rejected exchanged, and q' the mirror image of the posterior q of the
    pair, in which codes 2 i and 2 i + 1 change places (k -> k xor 1). Whoever exchanges all their labels has the
    opposite taste, and so the other code of the couple (SPL, arXiv 2603.12595, which mirrors the mean of a Gaussian).

    Symmetric, because neither order of a pair is the given one. Not the Jensen-Shannon divergence, although that is
    bounded by ln 2: it is flat where q and s are both sure of the same code, which is what the term is there to undo.

    Args:
        logits, swapped_logits: posterior logits of the pairs and of the exchanged pairs; K even.
    """
    mirrored = logits.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    log_q, log_s = mirrored.log_softmax(dim=-1), swapped_logits.log_softmax(dim=-1)
    return ((log_q.exp() - log_s.exp()) * (log_q - log_s)).sum(dim=-1) / 2


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(exp(log variance))) || N(0, I)): [B, d], [B, d] -> [B]."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=-1) / 2


def latent_loss(config: LatentConfig, kl_weight: float, kl: Tensor, posterior_logits: Tensor | None) -> Tensor:
    """lambda max(KL(q || p), free bits) - usage_entropy_weight H(mean q), to be added to the preference loss: [B].

    The entropy belongs to the micro-batch. Every pair carries all of it, so that a mean over pairs counts it once.

    Args:
        config: free bits and the weight of the entropy.
        kl_weight: lambda at this step, from `LatentSchedule`.
        kl: [B] KL(q || p) per pair.
        posterior_logits: [B, K]; None without codes, where there is no entropy.
    """
    loss = kl_weight * kl_with_free_bits(kl, config.kl_free_bits)
    if config.usage_entropy_weight and posterior_logits is not None:
        loss = loss - config.usage_entropy_weight * usage_entropy(posterior_logits)
    return loss
