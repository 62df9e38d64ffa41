"""Accuracy on the query pairs of a scored data set, together and group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megatron_lpc.evaluation.results import GroupReport, SupportReport
from megatron_lpc.evaluation.support import GroupLatents

SUPPORT = "support"
"""Name of the mixture of codes by a group's mean posterior, among the latents of a report."""
SUPPORT_EXACT = "support_exact"
"""Name of the prediction by a group's exact posterior."""
SWAPPED = "swapped"
"""Name of the prediction by the exact posterior of another group, averaged over the other groups."""


def report_support(
    correct: Mapping[str, Tensor], *, groups: Sequence[str], is_query: Tensor, latents: GroupLatents
) -> SupportReport:
    """Accuracies on the query pairs of a scored data set.

    Args:
        correct: name of a latent -> [P] bool, the pairs that it orders as labelled, or [P] the share of several
            latents that do; `SUPPORT` is among them, and with codes `SUPPORT_EXACT`.
        groups: group of each pair.
        is_query: [P] bool, the query pairs; at least one.
        latents: what the support sets say of each group.
    """
    of_groups = {}
    has_codes = SUPPORT_EXACT in correct
    for group, mixture in latents.mixtures.items():
        selected = is_query & torch.tensor([other == group for other in groups])
        has_queries = bool(selected.any())
        of_groups[group] = GroupReport(
            mixture=mixture.tolist() if has_codes else None,
            posterior=latents.log_likelihoods[group].softmax(-1).tolist() if has_codes else None,
            query_pairs=int(selected.sum()),
            accuracy=_share(correct[SUPPORT], selected) if has_queries else None,
            accuracy_exact=_share(correct[SUPPORT_EXACT], selected) if has_queries and has_codes else None,
        )
    return SupportReport(
        query_pairs=int(is_query.sum()),
        accuracy={name: _share(of_latent, is_query) for name, of_latent in correct.items()},
        groups=of_groups,
        left_out=sorted(set(groups) - latents.mixtures.keys()),
    )


def _share(correct: Tensor, selected: Tensor) -> float:
    """Of the selected pairs."""
    return float(correct[selected].double().mean())
