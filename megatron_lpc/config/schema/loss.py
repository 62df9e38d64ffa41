"""The objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lpc.config.idle_rules import (
    FROZEN_REFERENCE,
    NO_LABEL_SMOOTHING,
    NO_REFERENCE,
    NOT_DPO,
    NOT_DPO_OR_IPO,
    NOT_IPO,
    NOT_SIMPO,
    REFERENCE_NOT_ONLINE,
    REFERENCE_NOT_PRECOMPUTED,
)
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The preference objective and where its reference log-probs come from."""

    loss_type: Literal["dpo", "ipo", "simpo", "sft"] = option("dpo", role=Role.RUN, evaluation=True)
    """Objective. `sft` trains on the chosen response only."""

    beta: float = option(0.1, range="(0, inf)", role=Role.RUN, evaluation=True)
    """Strength of the regularization towards the reference (dpo, ipo), scale of the reward (simpo)."""

    # Robust DPO divides by 1 - 2 e, and at one half a label says nothing.
    label_smoothing: float = option(0.0, range="[0, 0.5)", role=Role.RUN, idle=NOT_DPO, evaluation=True)
    """dpo: assumed probability that a label is flipped (conservative DPO)."""

    robust: bool = option(False, role=Role.RUN, idle=(NOT_DPO, NO_LABEL_SMOOTHING), evaluation=True)
    """dpo: the unbiased estimate for that flip probability (robust DPO) instead of the conservative one."""

    rpo_alpha: float = option(0.0, range="[0, inf)", role=Role.RUN, idle=NOT_DPO_OR_IPO, evaluation=True)
    """dpo and ipo: weight of the length-averaged negative log-likelihood of the chosen response in the loss."""

    simpo_gamma: float = option(0.5, range="[0, inf)", role=Role.RUN, idle=NOT_SIMPO, evaluation=True)
    """simpo: target reward margin."""

    ipo_length_average: bool = option(True, role=Role.RUN, idle=NOT_IPO, evaluation=True)
    """ipo: average log-probs over the response (TRL) instead of summing them (OpenRLHF, the paper)."""

    # A cache belongs to the training and validation data of its run: an evaluation always runs the reference model.
    reference: Literal["online", "precomputed"] = option("online", role=Role.RUN, idle=(NO_REFERENCE, FROZEN_REFERENCE))
    """dpo and ipo: a frozen copy in the same parallel layout, or log-probs from `reference_cache`."""

    reference_cache: str | None = option(
        None, role=Role.RUN, idle=(NO_REFERENCE, FROZEN_REFERENCE, REFERENCE_NOT_PRECOMPUTED)
    )
    """Folder written by `python -m megatron_lpc.precompute_reference`, one file per data set."""

    reference_load: str | None = option(None, role=Role.RUN, idle=(NO_REFERENCE, FROZEN_REFERENCE), evaluation=True)
    """Checkpoint of the reference; the weights that training starts from when unset."""

    reference_offload: bool = option(
        False,
        role=Role.RUN,
        idle=(NO_REFERENCE, FROZEN_REFERENCE, REFERENCE_NOT_ONLINE),
        evaluation=True,
    )
    """Keep the online reference in host memory between its forward passes."""

    logps_algorithm: Literal["auto", "recompute", "pairwise"] = option("auto", role=Role.RUN)
    """How training computes the log-probs of a pair and their gradients. `pairwise`: in one pass, from the logits of
    whole pairs. `recompute`: the backward pass computes the logits again. `auto`: `pairwise`, unless a pair has more
    loss tokens than `logps_chunk_size`."""

    logps_chunk_size: int | None = option(None, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Loss tokens whose logits are in memory at one time; 4096 on CUDA and 1024 on a CPU when unset."""
