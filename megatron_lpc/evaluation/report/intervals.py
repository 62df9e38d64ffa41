"""Shares of pairs with intervals by the bootstrap, which draws prompts and not pairs: pairs of a prompt are alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 1000
SEED = 0
_CHUNK = 2**20
"""Draws that are in memory at one time."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share with the 95% interval around it."""

    value: float
    low: float
    high: float


def shares(correct: Mapping[str, Tensor], prompts: Tensor, selected: Tensor) -> dict[str, Share]:
    """Of each name the share of the selected pairs that is correct. The draws are the same for all names.

    Args:
        correct: name -> [P] bool, or [P] a share for each pair.
        prompts: [P] int64 number of each pair's prompt.
        selected: [P] bool; some pair is.
    """
    _, clusters = np.unique(prompts[selected].numpy(), return_inverse=True)
    values = torch.stack([of_name[selected].double() for of_name in correct.values()], dim=1).numpy()
    # [C, 1 + names] pairs of each prompt, and correct ones among them.
    sums = np.stack(
        [np.bincount(clusters, column) for column in [np.ones(len(values)), *values.T]], axis=1, dtype=np.float64
    )
    means = _resampled(sums)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {
        name: Share(value=float(values[:, place].mean()), low=float(low[place]), high=float(high[place]))
        for place, name in enumerate(correct)
    }


def _resampled(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[RESAMPLES, names] shares of samples of as many prompts."""
    generator = np.random.default_rng(SEED)
    count = len(sums)
    at_once = max(1, _CHUNK // count)
    parts = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.integers(count, size=(min(at_once, RESAMPLES - start), count))
        parts.append(sums[drawn].sum(1))
    totals = np.concatenate(parts)
    return totals[:, 1:] / totals[:, :1]
