"""Figures of predictions: accuracy, calibration, and their intervals over workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 2000
BINS = 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A value, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


def hits(probabilities: Array) -> Array:
    """[P] 1 where the vote is the likelier one, 0 where it is not, 0.5 where neither is."""
    found: Array = 0.5 + 0.5 * np.sign(probabilities - 0.5)
    return found


def mean_over_workers(values: Array, workers: Sequence[str], seed: int = 0) -> Figure:
    """The mean over votes, and its interval when workers are drawn again with all their votes (percentile bootstrap).

    Args:
        values: [P] one for each vote, such as hits, or the difference of the hits of two methods.
        workers: who gave it.
    """
    _, number = np.unique(np.array(workers), return_inverse=True)
    sums, counts = np.bincount(number, values), np.bincount(number)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.percentile(means, [2.5, 97.5])
    return Figure(value=float(values.mean()), low=float(low), high=float(high))


def calibration_error(probabilities: Array) -> float:
    """Expected calibration error: how far the share of hits is from the probability that the model gives what it
    predicts, averaged over ten bins of that probability by the votes in them."""
    confidence = np.maximum(probabilities, 1 - probabilities)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(place, hits(probabilities) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def log_loss(probabilities: Array) -> float:
    """Mean of -log p of the votes, nats; ln 2 = 0.693 says nothing."""
    return float(-np.log(probabilities).mean())


def per_worker(values: Array, workers: Sequence[str]) -> dict[str, float]:
    """Worker -> the mean of the values [P] of their votes."""
    names = np.array(workers)
    return {str(name): float(values[names == name].mean()) for name in np.unique(names)}
