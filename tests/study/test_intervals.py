"""Intervals are those of scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from megatron_lpc.study.intervals import mean_interval, paired_interval, t_quantile

VALUES = {1: 50.0, 2: 61.5, 3: 55.25, 7: 58.0}
REFERENCE = {1: 48.0, 2: 57.0, 3: 56.0, 5: 90.0}


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 29, 100, 301])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9995])
def test_quantiles(probability: float, degrees: int) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_quantiles_that_there_are_not(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        t_quantile(probability, degrees)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_interval_of_a_mean(count: int) -> None:
    values = list(VALUES.values())[:count]
    estimate = mean_interval(values)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.count == count
    assert estimate.half_width is not None
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx((low, high))


def test_one_value_has_no_interval_and_equal_ones_have_none_of_width() -> None:
    assert mean_interval([3.0]).half_width is None
    assert mean_interval([3.0, 3.0]).half_width == 0


def test_a_difference_is_paired_by_seed() -> None:
    estimate = paired_interval(VALUES, REFERENCE)
    assert estimate is not None
    both = [1, 2, 3]
    test = stats.ttest_rel([VALUES[seed] for seed in both], [REFERENCE[seed] for seed in both])
    low, high = test.confidence_interval(0.95)
    assert estimate.half_width is not None
    assert (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width) == pytest.approx((low, high))
    assert math.isclose(estimate.mean, (2 + 4.5 - 0.75) / 3)
    assert paired_interval(VALUES, {9: 1.0}) is None
