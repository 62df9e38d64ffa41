"""How well latents judge the held-out pairs of a scored data set, together and group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from megatron_lpc.config import Config
from megatron_lpc.evaluation.report import Person, SupportReport
from megatron_lpc.evaluation.scoring import PairTable, table_metrics


def judge(
    config: Config,
    table: PairTable,
    names: Sequence[str],
    groups: Sequence[str],
    kept: Tensor,
    latents: Mapping[str, Tensor],
) -> SupportReport:
    """Accuracies over the held-out pairs of a scored data set.

    Args:
        table: P pairs under L latents, of which the last is that of each pair's group.
        names: what the L latents are called.
        groups: group of every pair.
        kept: [P] bool, the held-out pairs; at least one.
        latents: group -> [K] code weights of its support.
    """
    people = {}
    for group, latent in latents.items():
        own = kept & torch.tensor([other == group for other in groups])
        accuracy = _accuracy(config, table, len(names) - 1, own) if own.any() else None
        people[group] = Person(mixture=latent.tolist(), held_out=int(own.sum()), accuracy=accuracy)
    return SupportReport(
        held_out=int(kept.sum()),
        accuracy={name: _accuracy(config, table, index, kept) for index, name in enumerate(names)},
        people=people,
        left_out=sorted(set(groups) - latents.keys()),
    )


def _accuracy(config: Config, table: PairTable, latent: int, kept: Tensor) -> float:
    per_pair = {field.name: getattr(table, field.name)[kept] for field in fields(table) if field.name != "logps"}
    return table_metrics(config, PairTable(logps=table.logps[:, kept], **per_pair), latent)["rewards/accuracies"]
