"""The preference objectives: response log-probs in, one loss and two rewards per pair out.

Symbols: l_w, l_l are the summed log-probs of the chosen and the rejected response under the policy, r_w, r_l the same
under the frozen reference, |y| the number of response tokens. Below, tensors of shape [2, B] hold the chosen responses
in row 0 and the rejected ones in row 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_lpc.config.objectives import OBJECTIVES_WITH_REFERENCE
from megatron_lpc.config.schema import LossConfig


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Implicit rewards of B pairs, without gradient: fp32, or fp64 for fp64 log-probs."""

    chosen: Tensor
    """[B]."""
    rejected: Tensor
    """[B]."""


@dataclass(frozen=True)
class _Responses:
    policy: Tensor
    """[2, B] summed log-probs under the policy."""
    reference: Tensor | None
    """[2, B] summed log-probs under the reference, where the objective has one."""
    length: Tensor
    """[2, B] response tokens, at least 1."""

    @property
    def log_ratio(self) -> Tensor:
        """[2, B] log pi(y|x) - log ref(y|x)."""
        assert self.reference is not None
        return self.policy - self.reference

    @property
    def policy_average(self) -> Tensor:
        """[2, B] log-prob per token."""
        return self.policy / self.length


def _sft(config: LossConfig, responses: _Responses) -> Tensor:
    """-l_w / |y_w|: each pair weighs the same, however long its chosen response."""
    return -responses.policy_average[0]


def _dpo(config: LossConfig, responses: _Responses) -> Tensor:
    """Direct Preference Optimization, with m = beta ((l_w - r_w) - (l_l - r_l)) and e = label smoothing.

    Plain: -log s(m) (arXiv 2305.18290, eq. 7). Conservative: -(1 - e) log s(m) - e log s(-m) (E. Mitchell, "A note on
    DPO with noisy preferences"). Robust: (-(1 - e) log s(m) + e log s(-m)) / (1 - 2 e) (arXiv 2403.00409). RPO adds
    `rpo_alpha` times the SFT loss (arXiv 2404.19733).
    """
    chosen, rejected = responses.log_ratio
    margin = config.beta * (chosen - rejected)
    smoothing = config.label_smoothing
    as_labelled = -(1 - smoothing) * logsigmoid(margin)
    flipped = -smoothing * logsigmoid(-margin)
    loss = as_labelled + flipped
    if config.robust:
        loss = (as_labelled - flipped) / (1 - 2 * smoothing)
    return loss + config.rpo_alpha * _sft(config, responses)


def _ipo(config: LossConfig, responses: _Responses) -> Tensor:
    """((l_w - r_w) - (l_l - r_l) - 1 / (2 beta))^2 (arXiv 2310.12036, eq. 17), plus `rpo_alpha` times the SFT loss.

    The paper does not say whether log-probs are summed or averaged over a response: TRL averages, OpenRLHF sums.
    """
    scores = responses.log_ratio / responses.length if config.ipo_length_average else responses.log_ratio
    chosen, rejected = scores
    return (chosen - rejected - 1 / (2 * config.beta)) ** 2 + config.rpo_alpha * _sft(config, responses)


def _simpo(config: LossConfig, responses: _Responses) -> Tensor:
    """-log s(beta (l_w / |y_w| - l_l / |y_l|) - gamma) (arXiv 2405.14734, eq. 6)."""
    chosen, rejected = responses.policy_average
    return -logsigmoid(config.beta * (chosen - rejected) - config.simpo_gamma)


_Objective = Callable[[LossConfig, _Responses], Tensor]
_OBJECTIVES: dict[str, _Objective] = {"dpo": _dpo, "ipo": _ipo, "simpo": _simpo, "sft": _sft}


def uses_reference(config: LossConfig) -> bool:
    """Whether the objective compares the policy with a frozen reference."""
    return config.loss_type in OBJECTIVES_WITH_REFERENCE


def preference_loss(
    config: LossConfig, policy_logps: Tensor, reference_logps: Tensor | None, response_length: Tensor
) -> Tensor:
    """[B] objective of each pair, nats, from the log-probs of the 2B responses, chosen first. fp32, or fp64 for fp64
    log-probs.

    Args:
        config: objective and its constants.
        policy_logps: [2B] summed response log-probs, nats. Half precision is raised to fp32.
        reference_logps: [2B] the same under the reference; None for an objective without one, which does not read a
            given one.
        response_length: [2B] response tokens. 0 counts as 1, so that an empty response (an error upstream) gives no
            NaN.

    Raises:
        ValueError: a shape differs, or the objective needs a reference and there is none.
    """
    responses = _responses(config, policy_logps, reference_logps, response_length)
    return _OBJECTIVES[config.loss_type](config, responses)


def implicit_rewards(
    config: LossConfig, policy_logps: Tensor, reference_logps: Tensor | None, response_length: Tensor
) -> Rewards:
    """The rewards that an objective implies, which are TRL's. Arguments and errors as of `preference_loss`.

    beta (l - r) from summed log-probs for dpo and ipo, beta l / |y| for simpo. Objectives of TRL that have no
    reference reward beta times the log-prob that they train on; sft does likewise, which gives beta l / |y| again.
    """
    responses = _responses(config, policy_logps, reference_logps, response_length)
    score = responses.log_ratio if uses_reference(config) else responses.policy_average
    chosen, rejected = config.beta * score.detach()
    return Rewards(chosen=chosen, rejected=rejected)


def _responses(
    config: LossConfig, policy_logps: Tensor, reference_logps: Tensor | None, response_length: Tensor
) -> _Responses:
    """The checked arguments of `preference_loss`, in its dtype."""
    if policy_logps.ndim != 1 or policy_logps.numel() % 2:
        raise ValueError(f"policy_logps must be [2B], chosen then rejected; it is {list(policy_logps.shape)}")
    for name, tensor in (("reference_logps", reference_logps), ("response_length", response_length)):
        if tensor is not None and tensor.shape != policy_logps.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, but policy_logps is {list(policy_logps.shape)}")
    if uses_reference(config) and reference_logps is None:
        raise ValueError(f"--loss-type {config.loss_type} compares with a reference, but reference_logps is None")
    dtype = torch.promote_types(policy_logps.dtype, torch.float32)
    return _Responses(
        policy=policy_logps.to(dtype).view(2, -1),
        reference=reference_logps.to(dtype).view(2, -1) if reference_logps is not None else None,
        length=response_length.clamp(min=1).to(dtype).view(2, -1),
    )
