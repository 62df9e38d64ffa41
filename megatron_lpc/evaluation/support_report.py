"""Accuracy on the query pairs of a scored data set, together and group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megatron_lpc.config import LossConfig
from megatron_lpc.evaluation.pair_table import PairTable, table_metrics
from megatron_lpc.evaluation.report import GroupReport, SupportReport


def report_support(
    loss: LossConfig,
    table: PairTable,
    latents: Sequence[str],
    *,
    groups: Sequence[str],
    is_query: Tensor,
    mixtures: Mapping[str, Tensor],
) -> SupportReport:
    """Accuracies on the query pairs of a scored data set.

    Args:
        table: P pairs under L latents, of which the last is that of each pair's group.
        latents: names of the L latents.
        groups: group of each pair.
        is_query: [P] bool, the query pairs; at least one.
        mixtures: group -> [K] mixture weights from its support set.
    """
    group_latent = len(latents) - 1
    of_groups = {}
    for group, mixture in mixtures.items():
        selected = is_query & torch.tensor([other == group for other in groups])
        of_groups[group] = GroupReport(
            mixture=mixture.tolist(),
            query_pairs=int(selected.sum()),
            accuracy=_accuracy(loss, table, group_latent, selected) if selected.any() else None,
        )
    return SupportReport(
        query_pairs=int(is_query.sum()),
        accuracy={name: _accuracy(loss, table, latent, is_query) for latent, name in enumerate(latents)},
        groups=of_groups,
        left_out=sorted(set(groups) - mixtures.keys()),
    )


def _accuracy(loss: LossConfig, table: PairTable, latent: int, selected: Tensor) -> float:
    """Of the selected pairs under the `latent`-th latent."""
    return table_metrics(loss, table.select(selected), latent)["rewards/accuracies"]
