"""A histogram, as TensorBoard and Weights & Biases take it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_BINS = 30
"""As many as TensorBoard shows."""
_MOST_BINS = 512
"""As many as Weights & Biases takes."""


@dataclass(frozen=True)
class Histogram:
    """How much there is between edges."""

    edges: NDArray[np.float64]
    """[bins + 1], ascending."""
    counts: NDArray[np.float64]
    """[bins], at least 0; not always whole."""


def histogram_of_values(values: Tensor) -> Histogram:
    """Of numbers, in equal bins from the least to the largest; those that are not finite are left out.

    Args:
        values: on the CPU.
    """
    finite = values[values.isfinite()].double().numpy()
    # numpy has no bins between numbers that differ by rounding. Equal ones it puts into the middle of a range of 1.
    if finite.size and np.ptp(finite) <= 1e-9 * np.abs(finite).max() + 1e-300:
        finite = np.full_like(finite, finite[0])
    counts, edges = np.histogram(finite, bins=_BINS)
    return Histogram(edges, counts.astype(np.float64))


def histogram_of_codes(weights: Tensor) -> Histogram:
    """Of the numbers of codes, code k from k - 1/2 to k + 1/2; of more than 512 codes several share a bin.

    Args:
        weights: [K] how often each code occurs, on the CPU.
    """
    per_bin = -(-len(weights) // _MOST_BINS)
    starts = np.arange(0, len(weights), per_bin)
    edges = np.append(starts, len(weights)) - 0.5
    return Histogram(edges, np.add.reduceat(weights.double().numpy(), starts))
