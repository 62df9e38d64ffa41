"""Whether sigmoid(margin) is the probability that a pair is ordered as labelled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 10


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Pairs of like confidence."""

    low: float
    high: float
    pairs: int
    confidence: float
    """Their mean of max(p, 1 - p), for p = sigmoid(margin)."""
    accuracy: float
    """Share of them whose chosen response has the greater reward."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Of one latent, on some pairs."""

    latent: str
    pairs: int
    error: float
    """Expected calibration error: the mean of |accuracy - confidence| of bins, by their pairs."""
    brier: float
    """Mean of (1 - sigmoid(margin))^2: 0 at best, 0.25 for a constant 1/2."""
    bins: list[Bin]
    """Those that hold a pair, of equal width from 1/2 to 1."""


def reliability(latent: str, margins: Tensor) -> Reliability:
    """Calibration of the margins [P] of some pairs, at least one: reward of chosen minus reward of rejected."""
    confidence = margins.abs().sigmoid()
    correct = (margins > 0).double()
    place = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            bins.append(
                Bin(
                    low=0.5 + number / (2 * BINS),
                    high=0.5 + (number + 1) / (2 * BINS),
                    pairs=int(inside.sum()),
                    confidence=float(confidence[inside].mean()),
                    accuracy=float(correct[inside].mean()),
                )
            )
    return Reliability(
        latent=latent,
        pairs=len(margins),
        error=sum(each.pairs * abs(each.accuracy - each.confidence) for each in bins) / len(margins),
        brier=float(((1 - torch.sigmoid(margins)) ** 2).mean()),
        bins=bins,
    )
