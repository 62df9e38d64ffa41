"""How sure the mixture weights of an annotator are, by resampling the labelled pairs that they are from (bootstrap).

Resampling knows only the pairs that are there, so from a handful of them the figures are rough. Of a product of experts
that leaves two codes about equal, it moves up to twice the weight that new pairs would.

Shape legend: P pairs, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_lpc.evaluation.evidence import Evidence

_DRAWS = 2000
_SEED = 0
_TAIL = 0.025
"""Of the draws below the interval, and as many above it: 95% lie within."""
_MOST_DOUBLINGS = 4
"""More pairs are told of up to 16 times as many as there are."""
SETTLED = 0.05
"""Moved weight below which more pairs change little."""


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What is known of mixture weights beside themselves."""

    entropy: float
    """Of the weights, nats: 0 where one code has all, ln K where all have the same."""
    interval: Tensor | None
    """[2, K] fp64 between which each weight lies in 95% of the resampled sets; None for a single pair."""
    moved: Mapping[int, float]
    """Number of pairs -> the share of the weight that changes codes, in the mean, when so many pairs of the annotator
    are replaced by as many others: half the L1 distance. Empty for a single pair."""

    @property
    def effective_codes(self) -> float:
        """exp of the entropy: that many codes of equal weight are as uncertain."""
        return float(np.exp(self.entropy))


def certainty(evidence: Evidence) -> Certainty:
    """Entropy and intervals of the weights from P pairs, and how both would change with more pairs.

    The same evidence gives the same figures.
    """
    weights = evidence.weights
    entropy = float(-torch.xlogy(weights, weights).sum())
    pairs = len(evidence.logits)
    if pairs == 1:
        return Certainty(entropy=entropy, interval=None, moved={})
    random = np.random.default_rng(_SEED)
    smaller = [2**power for power in range(pairs.bit_length()) if 2**power < pairs]
    sizes = [*smaller, *(pairs * 2**doublings for doublings in range(_MOST_DOUBLINGS + 1))]
    resampled = {size: _resampled(evidence, size, random) for size in sizes}
    tails = torch.tensor([_TAIL, 1 - _TAIL], dtype=weights.dtype)
    return Certainty(
        entropy=entropy,
        interval=torch.quantile(resampled[pairs], tails, dim=0),
        moved={size: _moved(drawn) for size, drawn in resampled.items()},
    )


def more_pairs_line(found: Certainty, pairs: int) -> str:
    """In one sentence, what more labelled pairs would do."""
    if not found.moved:
        return "One pair does not tell how sure the weights are: label more."
    now = found.moved[pairs]
    line = f"Another {pairs} pairs of the annotator in place of these would move {now:.0%} of the weight"
    if now < SETTLED:
        return f"{line}: more pairs change little."
    larger = [size for size in found.moved if size > pairs]
    enough = next((size for size in larger if found.moved[size] < SETTLED), larger[-1])
    return f"{line}; with {enough} pairs it would be {found.moved[enough]:.0%}: label {enough - pairs} more."


def _resampled(evidence: Evidence, size: int, random: np.random.Generator) -> Tensor:
    """[draws, K] weights from `size` of the pairs, drawn with replacement."""
    pairs = len(evidence.logits)
    drawn = random.multinomial(size, np.full(pairs, 1 / pairs), _DRAWS)
    counts = torch.from_numpy(drawn).to(evidence.logits)
    if evidence.product:
        return (counts @ evidence.logits).softmax(-1)
    return counts @ evidence.logits.softmax(-1) / size


def _moved(drawn: Tensor) -> float:
    """Half the mean L1 distance of independent draws [draws, K]."""
    first, second = drawn.chunk(2)
    return float((first - second).abs().sum(-1).mean() / 2)
