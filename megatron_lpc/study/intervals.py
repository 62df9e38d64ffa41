"""Means over seeds with their confidence intervals by Student's t, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, and the interval around it that holds the true mean with probability `CONFIDENCE`."""

    mean: float
    half_width: float | None
    """Half of the interval's width; None for one value, which says nothing of its own spread."""
    count: int
    """Values that the mean is of."""


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values, at least one: mean ± t s / sqrt(n), with n - 1 degrees of freedom.

    Exact where the values are normally distributed.
    """
    count = len(values)
    if count == 1:
        return Estimate(mean=values[0], half_width=None, count=1)
    quantile = t_quantile((1 + CONFIDENCE) / 2, count - 1)
    return Estimate(mean=fmean(values), half_width=quantile * stdev(values) / math.sqrt(count), count=count)


def paired_interval(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Mean and interval of the differences value - reference, of the seeds that both have; None where that is none.

    Args:
        values, reference: seed -> value.
    """
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference]
    return mean_interval(differences) if differences else None


def t_quantile(probability: float, degrees: int) -> float:
    """The value t with P(T < t) = `probability`, for T of Student's distribution.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"probability {probability} must be in [0.5, 1), and degrees {degrees} at least 1")
    # t = sqrt(degrees) tan(angle), and the angle lies in a known range. Halving it 60 times leaves no bit of it open.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if (1 + _central_probability(middle, degrees)) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| < t) for t = sqrt(degrees) tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = cosine if is_odd else 1.0
    total = 0.0
    for power in range(2 + is_odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
