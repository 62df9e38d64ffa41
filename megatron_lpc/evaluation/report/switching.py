"""Code switching: accuracy on the same pairs under the latent of their own group, of others, and under each code."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lpc.config import LossConfig
from megatron_lpc.evaluation.code_latents import correct_by_codes
from megatron_lpc.evaluation.marginal import MARGINAL, log_prior, mixture_is_correct
from megatron_lpc.evaluation.pair_table import PairTable, Responses, is_correct
from megatron_lpc.evaluation.report.intervals import Share, shares
from megatron_lpc.evaluation.report.labels import pairs_by_label
from megatron_lpc.evaluation.report.scored_pairs import ScoredPairs
from megatron_lpc.evaluation.support import GroupLatents
from megatron_lpc.evaluation.support_report import SUPPORT
from megatron_lpc.losses import implicit_rewards

SHUFFLED = "shuffled"
"""Name of the prediction by the exact posterior of a group that was drawn for each pair."""
SEED = 0
MOST_GROUPS = 24
"""Groups for which the accuracy under each code is told, at most."""


@dataclass(frozen=True, kw_only=True)
class FixedCode:
    """Accuracy of one code for all pairs."""

    code: int
    accuracy: Share
    groups: dict[str, float]
    """Group -> on its pairs, of the groups with most pairs."""


@dataclass(frozen=True, kw_only=True)
class Switching:
    """Accuracies on the query pairs where there are groups, else on all pairs."""

    pairs: int
    support_pairs: int | None
    """Labelled pairs that a group's latent is from; None without groups."""
    left_out: int
    """Groups with fewer pairs, whose pairs do not count."""
    latents: dict[str, Share]
    """By the prior (`prior`: its mean code, `marginal`: its codes vote) and, with groups, by the support set of the own
    group (`support`, `support_exact`), of the others (`swapped`) and of a random one (`shuffled`)."""
    fixed: list[FixedCode]


def correct_by_latent(scored: ScoredPairs) -> dict[str, Tensor]:
    """Name of a latent -> [P] whether it orders a pair as labelled, or the share of several latents that do."""
    loss, table = scored.config.loss, scored.table
    correct: dict[str, Tensor] = {"prior": is_correct(loss, table, 0)}
    if scored.support is None:
        return correct | {MARGINAL: mixture_is_correct(loss, table, log_prior(table))}
    groups, latents = scored.support.groups, scored.support.latents
    own = correct_by_codes(loss, table, latents, groups)
    correct |= {MARGINAL: own.pop(MARGINAL), SUPPORT: is_correct(loss, scored.support.table, 0)} | own
    return correct | {SHUFFLED: _shuffled_is_correct(loss, table, latents, groups)}


def switching(scored: ScoredPairs, correct: dict[str, Tensor], codes: Sequence[int]) -> Switching:
    """What the choice of the latent makes of the same pairs.

    Args:
        correct: what `correct_by_latent` gives.
        codes: those whose accuracy is wanted.
    """
    counted = scored.counted
    of_codes = code_margins(scored.config.loss, scored.table).T > 0
    fixed = shares({str(code): of_codes[code] for code in codes}, scored.prompts, counted)
    support = scored.support
    members = {} if support is None else pairs_by_label(support.groups, counted, MOST_GROUPS)
    return Switching(
        pairs=int(counted.sum()),
        support_pairs=None if support is None else support.pairs,
        left_out=0 if support is None else len(set(support.groups) - support.latents.mixtures.keys()),
        latents=shares(correct, scored.prompts, counted),
        fixed=[
            FixedCode(
                code=code,
                accuracy=fixed[str(code)],
                groups={group: float(of_codes[code][of_group].double().mean()) for group, of_group in members.items()},
            )
            for code in codes
        ],
    )


def _shuffled_is_correct(loss: LossConfig, table: PairTable, latents: GroupLatents, groups: Sequence[str]) -> Tensor:
    """[P] bool, by the latents of all pairs in random order; pairs of groups without a latent keep out of it."""
    places = [place for place, group in enumerate(groups) if group in latents.log_likelihoods]
    drawn = [groups[place] for place in places]
    random.Random(SEED).shuffle(drawn)
    shuffled = list(groups)
    for place, group in zip(places, drawn, strict=True):
        shuffled[place] = group
    return mixture_is_correct(loss, table, latents.exact_log_weights(shuffled, log_prior(table)))


def code_margins(loss: LossConfig, table: PairTable) -> Tensor:
    """[P, K] fp64: reward of chosen minus reward of rejected under each code."""
    of = Responses.under_codes(table)
    margins = []
    for logps in of.logps:
        rewards = implicit_rewards(loss, logps, of.reference_logps, of.response_length)
        margins.append(rewards.chosen - rewards.rejected)
    return torch.stack(margins, dim=1)
