"""How much a pair's code tells about the group that the pair belongs to."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Information:
    """Mutual information of codes and groups over P pairs, in bits."""

    bits: float
    """I(code; group), estimated by the observed frequencies."""
    maximum: float
    """H(group): what codes that name the group exactly would have."""
    bias: float
    """What `bits` has on average when codes know nothing: (codes - 1) (groups - 1) / (2 P ln 2), counting those that occur (Miller 1955).
    Not subtracted. Below a few times this, `bits` is no evidence."""


def mutual_information(codes: Tensor, groups: Sequence[Hashable]) -> Information:
    """Information that codes and groups share.

    Args:
        codes: [P] int64 >= 0, one code per pair, such as the posterior's most probable.
        groups: P groups, such as annotators.

    Raises:
        ValueError: there are no pairs, or not one group per pair.
    """
    if codes.ndim != 1 or not len(codes) or len(codes) != len(groups):
        raise ValueError(
            f"codes must be [P] with P > 0 and as many groups; codes are {list(codes.shape)}, groups {len(groups)}"
        )
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    group = torch.tensor([number[group] for group in groups])
    width = int(codes.max()) + 1
    counts = torch.bincount(group * width + codes.cpu(), minlength=len(number) * width).view(len(number), width)
    by_group, by_code = counts.sum(1), counts.sum(0)
    used = int((by_code > 0).sum())
    return Information(
        bits=max(0.0, _entropy(by_group) + _entropy(by_code) - _entropy(counts)),
        maximum=_entropy(by_group),
        bias=(used - 1) * (len(number) - 1) / (2 * len(codes) * math.log(2)),
    )


def _entropy(counts: Tensor) -> float:
    """Bits of the distribution that these counts are proportional to."""
    share = counts.reshape(-1).double() / counts.sum()
    return float(-torch.xlogy(share, share).sum() / math.log(2))
