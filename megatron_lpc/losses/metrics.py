"""What a step reports: sums over pairs on the device, turned into numbers once per step.

Sums can be added over micro-batches and ranks, means cannot. So each micro-batch gives sums, and the only division is
in `finish_metrics`. Names are TRL's where TRL has the metric.

Shape legend: B pairs of the micro-batch, K codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from megatron_lpc.losses.preference import Rewards

_PAIRS = "pairs"
_USAGE = "lpc/usage"
_FIRST_CHOICE = "lpc/first_choice"


def pair_metrics(
    loss: Tensor,
    rewards: Rewards,
    policy_logps: Tensor,
    posterior_logits: Tensor | None = None,
    prior_logits: Tensor | None = None,
) -> dict[str, Tensor]:
    """Sums over the B pairs of a micro-batch: fp64, without gradient and without waiting for the device.

    Scalars:
        `pairs`: their number.
        `loss`, `rewards/chosen`, `rewards/rejected`, `rewards/margins`.
        `rewards/accuracies`: pairs whose chosen response has the strictly greater reward. A tie counts as wrong (TRL's
            rule, for every objective).
        `logps/chosen`, `logps/rejected`: summed over the response, for every objective.
        With both logits, `lpc/kl`, `lpc/entropy_q`, `lpc/entropy_p` in nats, and `lpc/agreement`: pairs for which
            posterior and prior have the same most probable code.
    Vectors [K], with both logits:
        posterior weights, and pairs for which each code is the posterior's most probable one.
    None of these contains Gumbel noise.

    Args:
        loss: [B] everything that is minimised, the latent terms included.
        rewards: the pairs' implicit rewards.
        policy_logps: [2B] summed response log-probs, chosen first.
        posterior_logits: [B, K]; None where there are no codes.
        prior_logits: [B, K]; None where there are no codes.

    Raises:
        ValueError: one of the two logits is missing.
    """
    if (posterior_logits is None) != (prior_logits is None):
        raise ValueError("pair_metrics needs both posterior_logits and prior_logits, or neither")
    chosen = rewards.chosen
    rejected = rewards.rejected
    logps_chosen, logps_rejected = policy_logps.detach().chunk(2)
    per_pair = {
        _PAIRS: torch.ones_like(chosen),
        "loss": loss.detach(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": chosen > rejected,
        "logps/chosen": logps_chosen,
        "logps/rejected": logps_rejected,
    }
    if posterior_logits is not None and prior_logits is not None:
        per_pair |= _latent_metrics(posterior_logits.detach().double(), prior_logits.detach().double())
    return {name: values.double().sum(dim=0) for name, values in per_pair.items()}


def _latent_metrics(posterior_logits: Tensor, prior_logits: Tensor) -> dict[str, Tensor]:
    """Values per pair, [B] or [B, K], of logits [B, K]."""
    log_q = posterior_logits.log_softmax(dim=-1)
    log_p = prior_logits.log_softmax(dim=-1)
    q, p = log_q.exp(), log_p.exp()
    first_q, first_p = q.argmax(dim=-1), p.argmax(dim=-1)
    return {
        "lpc/kl": (q * (log_q - log_p)).sum(dim=-1),
        "lpc/entropy_q": -(q * log_q).sum(dim=-1),
        "lpc/entropy_p": -(p * log_p).sum(dim=-1),
        "lpc/agreement": first_q == first_p,
        _USAGE: q,
        _FIRST_CHOICE: one_hot(first_q, q.shape[-1]),
    }


def sum_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Add the sums of several micro-batches.

    Raises:
        ValueError: they have different names, or there are none.
    """
    parts = list(parts)
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(f"cannot add metrics of different names: {[sorted(part) for part in parts]}")
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}


def finish_metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of a step from the sums over all its pairs; waits for the device.

    Sums become means over pairs. Three signs of collapse follow from the two vectors [K]:
        `lpc/perplexity` = exp(H(mean q)): codes in use by weight, 1 to K. It is also high when every pair has the same
            flat posterior.
        `lpc/information` = H(mean q) - mean H(q): nats that the code tells about the pair, 0 to ln K. 0 is collapse,
            whatever the perplexity.
        `lpc/active_codes`: codes that are the most probable one of some pair of the step, 1 to min(K, pairs).
            Counted by first choice and not by mean weight, because a collapsed flat posterior gives weight to all
            codes.

    Raises:
        ValueError: there are no pairs.
    """
    pairs = float(sums[_PAIRS])
    if not pairs > 0:
        raise ValueError(f"metrics of {pairs:g} pairs cannot be averaged")
    means = {name: float(total) / pairs for name, total in sums.items() if total.ndim == 0 and name != _PAIRS}
    if _USAGE in sums:
        usage = sums[_USAGE] / pairs
        entropy = -torch.xlogy(usage, usage).sum()
        means["lpc/perplexity"] = float(entropy.exp())
        means["lpc/information"] = float(entropy) - means["lpc/entropy_q"]
        means["lpc/active_codes"] = float((sums[_FIRST_CHOICE] > 0).sum())
    return means
