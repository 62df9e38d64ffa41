"""Which unlabelled pairs tell most of an annotator's code: the expected information of their labels.

    I(label; code) = H(sum_k w_k p_k) - sum_k w_k H(p_k)

with w the weights of the codes by the labels so far, and p_k the probability of the label under code k (BALD, arXiv
1112.5745). Labels are independent given the code, so several pairs together tell

    I(labels; code) = H(labels) - sum_k w_k sum_i H(p_ik)

Pairs are chosen one after the other, each the one that adds most to those before (BatchBALD, arXiv 1906.08158): this
greedy choice is within 1 - 1/e of the best set, and does not ask twice for the same thing.

Shape legend: P pairs, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_SELECTED = 10
"""n labels have 2^n outcomes, which are enumerated."""
_BLOCK = 4096
"""Pairs whose outcomes are in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A pair of a pool."""

    example_index: int
    information: float
    """Expected information of its label by itself, nats."""
    gain: float
    """Of its label, given the labels of the pairs that were selected before it, nats."""


def expected_information(weights: Tensor, probability: Tensor) -> Tensor:
    """[P] nats that the label of each pair is expected to tell of the code.

    Args:
        weights: [K] fp64 of the codes.
        probability: [P, K] fp64 of the label "the first response" under each code.
    """
    return _entropy(probability @ weights) - _entropy(probability) @ weights


def select_pairs(weights: Tensor, probability: Tensor, count: int) -> list[Selected]:
    """The `count` pairs whose labels tell most together, greedily, or all pairs where there are fewer.

    Args:
        weights, probability: as `expected_information` takes them.
        count: at most `MOST_SELECTED`.

    Raises:
        ValueError: `count` is not between 1 and `MOST_SELECTED`.
    """
    if not 1 <= count <= MOST_SELECTED:
        raise ValueError(f"{count} pairs: must be 1 to {MOST_SELECTED}")
    alone = expected_information(weights, probability)
    noise = _entropy(probability) @ weights
    outcomes = weights[None]
    """[outcomes of the labels so far, K] joint probability of outcome and code."""
    known = float(torch.special.entr(outcomes.sum(1)).sum())
    chosen: list[Selected] = []
    taken = torch.zeros(len(probability), dtype=torch.bool)
    for _ in range(min(count, len(probability))):
        gains = _joint_entropy(outcomes, probability) - known - noise
        best = int(gains.masked_fill(taken, -torch.inf).argmax())
        taken[best] = True
        # Rounding may leave a label that tells nothing slightly below 0.
        information, gain = (max(0.0, float(values[best])) for values in (alone, gains))
        chosen.append(Selected(example_index=best, information=information, gain=gain))
        outcomes = torch.cat([outcomes * probability[best], outcomes * (1 - probability[best])])
        known = float(torch.special.entr(outcomes.sum(1)).sum())
    return chosen


def _joint_entropy(outcomes: Tensor, probability: Tensor) -> Tensor:
    """[P] entropy of the outcomes so far together with the label of each pair."""
    so_far = outcomes.sum(1)
    entropies = []
    for block in probability.split(_BLOCK):
        first = block @ outcomes.T
        entropies.append((torch.special.entr(first) + torch.special.entr((so_far - first).clamp(min=0))).sum(1))
    return torch.cat(entropies)


def _entropy(probability: Tensor) -> Tensor:
    """Nats of a label of this probability, elementwise."""
    return torch.special.entr(probability) + torch.special.entr(1 - probability)
