"""What is minimised and what is watched: pure functions on tensors, no model, no process group."""

from megatron_lpc.losses.collapse import CodeVerdict, code_verdict
from megatron_lpc.losses.exact import (
    code_losses,
    exact_posterior_logits,
    label_probability,
    marginal_loss,
    pool_episodes,
    prefers_chosen,
    prior_gradient_term,
)
from megatron_lpc.losses.latent_terms import (
    gaussian_kl,
    kl_with_free_bits,
    latent_loss,
    swap_divergence,
    usage_entropy,
)
from megatron_lpc.losses.marginal_metrics import marginal_metrics
from megatron_lpc.losses.metrics import finish_metrics, pair_metrics, sum_metrics
from megatron_lpc.losses.preference import Rewards, implicit_rewards, preference_loss, uses_reference
from megatron_lpc.losses.schedules import LatentSchedule, LatentState

__all__ = [
    "CodeVerdict",
    "LatentSchedule",
    "LatentState",
    "Rewards",
    "code_losses",
    "code_verdict",
    "exact_posterior_logits",
    "finish_metrics",
    "gaussian_kl",
    "implicit_rewards",
    "kl_with_free_bits",
    "label_probability",
    "latent_loss",
    "marginal_loss",
    "marginal_metrics",
    "pair_metrics",
    "pool_episodes",
    "preference_loss",
    "prefers_chosen",
    "prior_gradient_term",
    "sum_metrics",
    "swap_divergence",
    "usage_entropy",
    "uses_reference",
]
