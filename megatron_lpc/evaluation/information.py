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
    """I(code; group), estimated from the observed frequencies."""
    maximum: float
    """H(group): the information of codes that name the group exactly."""
    bias: float
    """What `bits` is on average when codes and groups are independent.

    (codes - 1) (groups - 1) / (2 P ln 2), counting those that occur (Miller 1955). It is not subtracted. Below a few
    times this value, `bits` is no evidence."""


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
    counts = _contingency_table(codes, groups)
    of_group, of_code = counts.sum(1), counts.sum(0)
    used_codes = int((of_code > 0).sum())
    return Information(
        bits=max(0.0, _entropy(of_group) + _entropy(of_code) - _entropy(counts)),
        maximum=_entropy(of_group),
        bias=(used_codes - 1) * (len(of_group) - 1) / (2 * len(codes) * math.log(2)),
    )


def _contingency_table(codes: Tensor, groups: Sequence[Hashable]) -> Tensor:
    """[groups, codes] int64: pairs of each group with each code."""
    group_ids = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    group_of_pair = torch.tensor([group_ids[group] for group in groups])
    num_groups, num_codes = len(group_ids), int(codes.max()) + 1
    cells = group_of_pair * num_codes + codes.cpu()
    return torch.bincount(cells, minlength=num_groups * num_codes).view(num_groups, num_codes)


def _entropy(counts: Tensor) -> float:
    """Bits of the distribution that these counts are proportional to."""
    probability = counts.reshape(-1).double() / counts.sum()
    return float(-torch.xlogy(probability, probability).sum() / math.log(2))
