"""A person's code mixture, from a handful of pairs that this person labelled; and which of his pairs may then judge it.

The posterior sees which response won, so a pair's own posterior cannot judge what the codes hold. Other pairs of the same person can.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor


def draw_support(groups: Sequence[str], pairs: int, seed: int) -> dict[str, list[int]]:
    """Rows of `pairs` pairs of each group, ascending, drawn without replacement.

    A group's draw depends on the seed, its name and how many pairs it has, not on the other groups. Groups with fewer pairs are left out.

    Args:
        groups: group of every row.
    """
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return {
        group: sorted(random.Random(f"{seed}/{group}").sample(own, pairs))
        for group, own in sorted(rows.items())
        if len(own) >= pairs
    }


def support_mixtures(posterior_logits: Tensor, support: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Mean posterior over each group's support: [P, K] logits -> [K] weights per group, in the logits' dtype."""
    posterior = posterior_logits.softmax(-1)
    return {group: posterior[torch.tensor(rows)].mean(0) for group, rows in support.items()}


def held_out_pairs(
    groups: Sequence[str], prompts: Sequence[Hashable], support_prompts: Mapping[str, set[Hashable]]
) -> Tensor:
    """[P] bool: pairs of a group with support, whose prompt is not in that group's support.

    The support's own pairs are excluded by this rule as well, when they are among the P.

    Args:
        groups, prompts: group and prompt of every row.
        support_prompts: prompts of each group's support; a group that is not in it has none.
    """
    return torch.tensor(
        [
            group in support_prompts and prompt not in support_prompts[group]
            for group, prompt in zip(groups, prompts, strict=True)
        ],
        dtype=torch.bool,
    )
