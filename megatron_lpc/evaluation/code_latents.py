"""The latents of groups that codes give, and which pairs each of them orders as labelled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from megatron_lpc.config import Config, LossConfig
from megatron_lpc.evaluation.evidence import Evidence
from megatron_lpc.evaluation.marginal import (
    MARGINAL,
    log_likelihoods,
    log_prior,
    mixture_is_correct,
    swapped_is_correct,
)
from megatron_lpc.evaluation.options import SupportOptions
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.evaluation.support import GroupLatents
from megatron_lpc.evaluation.support_report import SUPPORT_EXACT, SWAPPED


def latents_of_codes(
    config: Config, table: PairTable, groups: Sequence[str], prompts: Sequence[Hashable], support: SupportOptions
) -> GroupLatents:
    """The latent of each group from a support set that is drawn among the P pairs of a table.

    Args:
        table: scored under the codes.
        groups, prompts: group and prompt of each pair.
    """
    evidence = Evidence.of_support(config, table)
    return GroupLatents.estimate(
        evidence.logits,
        log_likelihoods(config.loss, table),
        groups,
        prompts,
        pairs=support.pairs,
        seed=support.seed,
        product=evidence.product,
    )


def correct_by_codes(
    loss: LossConfig, table: PairTable, latents: GroupLatents, groups: Sequence[str]
) -> dict[str, Tensor]:
    """Name -> [P] whether the codes vote for a pair's label: by the prior, by the exact posterior of the pair's group,
    and, with other groups, the share of them by whose posterior they do.
    """
    own = log_prior(table)
    correct = {
        MARGINAL: mixture_is_correct(loss, table, own),
        SUPPORT_EXACT: mixture_is_correct(loss, table, latents.exact_log_weights(groups, own)),
    }
    swapped = swapped_is_correct(loss, table, latents, groups)
    return correct if swapped is None else correct | {SWAPPED: swapped}
