"""Pairs by their label, such as the group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pairs_by_label(labels: Sequence[str], counted: Tensor, most: int) -> dict[str, Tensor]:
    """Label -> [P] bool, its pairs that count: in the order of names, of the `most` labels with most such pairs.

    Args:
        labels: of each pair.
        counted: [P] bool.
    """
    names = sorted(set(labels))
    number_of = {name: number for number, name in enumerate(names)}
    numbers = torch.tensor([number_of[label] for label in labels])
    counts = torch.bincount(numbers[counted], minlength=len(names))
    kept = counts.argsort(descending=True, stable=True)[:most].sort().values.tolist()
    return {names[number]: counted & (numbers == number) for number in kept if counts[number]}
