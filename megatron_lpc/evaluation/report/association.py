"""What the codes of pairs tell about their labels, such as the group: counts, information, and whether it is chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_lpc.evaluation.information import Information, mutual_information
from megatron_lpc.terminal import progress

PERMUTATIONS = 999
SEED = 0
MOST_COLUMNS = 24
"""Labels with a column of their own, at most."""


@dataclass(frozen=True, kw_only=True)
class Association:
    """Codes and labels of P pairs."""

    kind: str
    """What the labels are: group, source, ..."""
    information: Information
    p_value: float
    """Share of the random permutations of the labels, and of the labels as they are, with as much information."""
    permutations: int
    by_chance: float
    """Mean bits under a permutation."""
    codes: list[int]
    """The rows."""
    labels: list[str]
    """The columns, those of most pairs first."""
    counts: list[list[int]]
    """Pairs of each row and column."""
    left_out: int
    """Labels without a column."""


def association(kind: str, codes: torch.Tensor, labels: Sequence[str], rows: Sequence[int]) -> Association:
    """What codes tell about labels.

    Args:
        kind: what the labels are.
        codes: [P] int64, the code of each pair.
        labels: label of each pair.
        rows: the codes of the table, in this order.
    """
    information = mutual_information(codes, labels)
    permuted = _permuted_information(_numbered(codes.tolist()), _numbered(labels), kind)
    columns = [label for label, _ in sorted(Counter(labels).items(), key=lambda entry: (-entry[1], entry[0]))]
    of_pairs = Counter(zip(codes.tolist(), labels, strict=True))
    shown = columns[:MOST_COLUMNS]
    return Association(
        kind=kind,
        information=information,
        # A permutation that gives the labels back differs by rounding.
        p_value=(1 + int((permuted >= information.bits - 1e-9).sum())) / (1 + PERMUTATIONS),
        permutations=PERMUTATIONS,
        by_chance=float(permuted.mean()),
        codes=list(rows),
        labels=shown,
        counts=[[of_pairs[row, label] for label in shown] for row in rows],
        left_out=len(columns) - len(shown),
    )


def _numbered(values: Sequence[object]) -> NDArray[np.int64]:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], np.int64)


def _permuted_information(codes: NDArray[np.int64], labels: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """[PERMUTATIONS] bits of codes and labels in random order."""
    generator = np.random.default_rng(SEED)
    num_labels = int(labels.max()) + 1
    of_margins = _entropy(np.bincount(codes)) + _entropy(np.bincount(labels))
    bits = [
        of_margins - _entropy(np.bincount(codes * num_labels + generator.permutation(labels)))
        for _ in progress(range(PERMUTATIONS), f"Permuting the {kind} of pairs")
    ]
    return np.array(bits)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits of the distribution that these counts are proportional to."""
    probability = counts[counts > 0] / counts.sum()
    return float(-(probability * np.log2(probability)).sum())
