"""How sure the mixture weights of an annotator are, by resampling the labelled pairs that they are from (bootstrap).

Several codes may mean the same, and then it does not matter how the weight is divided among them. So what more pairs
would change is told in what the mixture predicts, not in its weights. Resampling knows only the pairs that are there:
from a handful of them the figures are rough, and by a product of experts too large rather than too small.

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
SETTLED = 0.02
"""Change of a probability below which more pairs change little."""


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What is known of mixture weights beside themselves."""

    entropy: float
    """Of the weights, nats: 0 where one code has all, ln K where all have the same."""
    interval: Tensor | None
    """[2, K] fp64 between which each weight lies in 95% of the resampled sets; None for a single pair."""
    change: Mapping[int, float]
    """Number of pairs -> by how much the predicted probability of a preference changes, in the mean, when so many pairs
    of the annotator are replaced by as many others. Empty for a single pair."""

    @property
    def effective_codes(self) -> float:
        """exp of the entropy: that many codes of equal weight are as uncertain."""
        return float(np.exp(self.entropy))


def certainty(evidence: Evidence, probability: Tensor) -> Certainty:
    """Entropy and intervals of the weights from P pairs, and what more pairs would change.

    The same arguments give the same figures.

    Args:
        probability: [P, K] fp64 of each pair's label under each code, by which the mixture's predictions are made.
    """
    weights = evidence.weights
    entropy = float(-torch.xlogy(weights, weights).sum())
    pairs = len(evidence.logits)
    if pairs == 1:
        return Certainty(entropy=entropy, interval=None, change={})
    random = np.random.default_rng(_SEED)
    smaller = [2**power for power in range(pairs.bit_length()) if 2**power < pairs]
    sizes = [*smaller, *(pairs * 2**doublings for doublings in range(_MOST_DOUBLINGS + 1))]
    resampled = {size: _resampled(evidence, size, random) for size in sizes}
    tails = torch.tensor([_TAIL, 1 - _TAIL], dtype=weights.dtype)
    return Certainty(
        entropy=entropy,
        interval=torch.quantile(resampled[pairs], tails, dim=0),
        change={size: _change(drawn @ probability.T) for size, drawn in resampled.items()},
    )


def more_pairs_line(found: Certainty, pairs: int) -> str:
    """In one sentence, what more labelled pairs would do."""
    if not found.change:
        return "One pair does not tell how sure the weights are: label more."
    now = found.change[pairs]
    line = f"Another {pairs} pairs of the annotator in place of these would change predictions by {_points(now)}"
    if now < SETTLED:
        return f"{line}: more pairs change little."
    larger = [size for size in found.change if size > pairs]
    enough = next((size for size in larger if found.change[size] < SETTLED), None)
    if enough is None:
        return f"{line}, and with {larger[-1]} pairs still by {_points(found.change[larger[-1]])}."
    return f"{line}, with {enough} pairs by {_points(found.change[enough])}: label {enough - pairs} more."


def _points(change: float) -> str:
    return f"{100 * change:.1f} points of probability"


def _resampled(evidence: Evidence, size: int, random: np.random.Generator) -> Tensor:
    """[draws, K] weights from `size` of the pairs, drawn with replacement."""
    pairs = len(evidence.logits)
    drawn = random.multinomial(size, np.full(pairs, 1 / pairs), _DRAWS)
    counts = torch.from_numpy(drawn).to(evidence.logits)
    if evidence.product:
        return (counts @ evidence.logits).softmax(-1)
    return counts @ evidence.logits.softmax(-1) / size


def _change(drawn: Tensor) -> float:
    """Mean absolute difference of independent draws [draws, P]."""
    first, second = drawn.chunk(2)
    return float((first - second).abs().mean())
