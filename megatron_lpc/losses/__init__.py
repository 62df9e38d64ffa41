"""What is minimised and what is watched: pure functions on tensors, no model, no process group."""

from megatron_lpc.losses.collapse import CodeVerdict, code_verdict
from megatron_lpc.losses.latent_terms import kl_with_free_bits, latent_loss, swap_divergence, usage_entropy
from megatron_lpc.losses.metrics import finish_metrics, pair_metrics, sum_metrics
from megatron_lpc.losses.preference import Rewards, implicit_rewards, preference_loss, uses_reference
from megatron_lpc.losses.schedules import LatentSchedule, LatentState

__all__ = [
    "CodeVerdict",
    "LatentSchedule",
    "LatentState",
    "Rewards",
    "code_verdict",
    "finish_metrics",
    "implicit_rewards",
    "kl_with_free_bits",
    "latent_loss",
    "pair_metrics",
    "preference_loss",
    "sum_metrics",
    "swap_divergence",
    "usage_entropy",
    "uses_reference",
]
