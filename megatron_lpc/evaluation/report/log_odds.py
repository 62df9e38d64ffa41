"""Log-odds ratios of phrases in two sets of texts, with an informative Dirichlet prior.

Monroe, Colaresi and Quinn, "Fightin' Words", Political Analysis 16 (2008), equations 15 to 22: a phrase marks one set
where its odds are higher there, by more than its counts leave to chance. The prior, the frequency of the phrase in all
texts, draws rare phrases to no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]
"""[F] how often each phrase occurs."""

PRIOR_SIZE = 200.0
"""Occurrences, in all, that the prior counts as."""
SIGNIFICANCE = 0.05
"""Probability, at most, that any phrase of two like sets of texts is said to mark one of them (Bonferroni)."""


@dataclass(frozen=True)
class LogOdds:
    """Of each phrase in one set of texts against another."""

    ratio: Counts
    """[F] log of the odds ratio, nats; above 0 where the first set has the phrase more often."""
    variance: Counts
    """[F] of that estimate."""

    @classmethod
    def of(cls, first: Counts, second: Counts, in_all: Counts) -> LogOdds:
        """Of two sets of texts.

        Args:
            in_all: counts in all texts there are; each phrase occurs.
        """
        prior = PRIOR_SIZE * in_all / in_all.sum()
        with_prior = [counts + prior for counts in (first, second)]
        first_odds, second_odds = (np.log(counts) - np.log(counts.sum() - counts) for counts in with_prior)
        return cls(first_odds - second_odds, 1 / with_prior[0] + 1 / with_prior[1])

    def __sub__(self, other: LogOdds) -> LogOdds:
        """How much higher the ratio is here than in independent texts."""
        return LogOdds(self.ratio - other.ratio, self.variance + other.variance)

    @property
    def z(self) -> Counts:
        """[F] the ratio in standard deviations of its estimate."""
        return self.ratio / np.sqrt(self.variance)


def least_z(num_phrases: int) -> float:
    """What |z| must reach for a phrase, one of so many, to mark a set of texts."""
    return NormalDist().inv_cdf(1 - SIGNIFICANCE / 2 / num_phrases) if num_phrases else math.inf
