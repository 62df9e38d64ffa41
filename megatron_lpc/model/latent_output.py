"""What every latent head is asked for, and what it gives.

Shape legend: B pairs, K codes, H hidden size, L latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

LatentSource = Literal["train", "prior", "posterior", "group", "mixture", "codes", "none"]
"""`codes` stands for K latents, one per code, `mixture` for as many as `PairBatch.mixture` has; every other source for
one latent. Modes do not have all of them."""


@dataclass(frozen=True, kw_only=True)
class LatentOutput:
    """What the head gives for B pairs. Fields that a mode does not have are None."""

    z: Tensor
    """[L, B, H] the latents of the requested sources; [L, 1, H] where these are the same for all pairs."""
    posterior_logits: Tensor | None = None
    """[B, K] fp32. For source `train`, where there is a `posterior_context`, of the other pairs of an episode. None
    without a posterior network (exact inference), as all that follows from it."""
    prior_logits: Tensor | None = None
    """[B, K] fp32."""
    kl: Tensor | None = None
    """[B] fp32 KL(q || p) in nats."""
    mean: Tensor | None = None
    """[B, d] fp32 of the Gaussian posterior, and with it `kl`; of other pairs as `posterior_logits`."""
    own_logits: Tensor | None = None
    """[B, K] fp32 posterior logits of each pair by itself."""
    swapped_logits: Tensor | None = None
    """[B, K] fp32 the same with chosen and rejected exchanged, where training guides by them."""
