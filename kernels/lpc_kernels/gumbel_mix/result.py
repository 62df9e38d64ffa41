"""What `gumbel_mix` returns, and its options."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GumbelMix:
    """Result of `gumbel_mix`. All but `z` are fp32 (fp64 where the logits are); all are differentiable."""

    z: Tensor
    """[B, H] latent, in the codebook's dtype."""
    kl: Tensor
    """[B] exact KL(q || p) in nats."""
    q: Tensor
    """[B, K] posterior probabilities, without noise."""
    p: Tensor
    """[B, K] prior probabilities, without noise."""
    entropy_q: Tensor
    """[B] entropy of q in nats."""
    entropy_p: Tensor
    """[B] entropy of p in nats."""
    weights_q: Tensor
    """[B, K] mixture weights sampled from the posterior; one-hot with `straight_through`."""
    weights_p: Tensor
    """[B, K] mixture weights sampled from the prior."""


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """The options of `gumbel_mix`, described there."""

    seed: int
    tau: float
    prior_mix: float
    straight_through: bool
