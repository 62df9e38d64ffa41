"""The latent schedule: how temperature, prior mix and KL weight change over training.

Each is a pure function of the iteration, so a resumed run continues exactly without any state.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config.schema import LatentConfig


@dataclass(frozen=True)
class LatentState:
    """Settings of the latent at one step."""

    tau: float
    """Temperature of the Gumbel-softmax."""
    prior_mix: float
    """Weight m of the prior in z = (1 - m) z_q + m z_p."""
    kl_weight: float
    """Weight lambda of KL(q || p)."""


@dataclass(frozen=True)
class LatentSchedule:
    """The latent schedule of a run of `train_iters` steps.

    Raises:
        ValueError: the run has no steps.
    """

    config: LatentConfig
    train_iters: int

    def __post_init__(self) -> None:
        if self.train_iters < 1:
            raise ValueError(f"train_iters is {self.train_iters}; a latent schedule needs at least one step")

    def at(self, iteration: int) -> LatentState:
        """Settings of step `iteration`, counted from 0.

        The last step (train_iters - 1) and all after it have the final values. A run of a single step has the first
        values.

        Raises:
            ValueError: the iteration is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration is {iteration}; steps are counted from 0")
        config = self.config
        progress = min(1.0, iteration / max(1, self.train_iters - 1))
        return LatentState(
            tau=self._tau(progress),
            prior_mix=_linear(config.prior_mix_initial, config.prior_mix_final, progress),
            kl_weight=config.kl_weight * self._kl_warmup(iteration),
        )

    def _kl_warmup(self, iteration: int) -> float:
        """Factor of the KL weight: from 0 to 1 over the warm-up."""
        if not self.config.kl_warmup_iters:
            return 1.0
        return min(1.0, iteration / self.config.kl_warmup_iters)

    def _tau(self, progress: float) -> float:
        first = self.config.gumbel_tau
        last = first if self.config.gumbel_tau_final is None else self.config.gumbel_tau_final
        if self.config.gumbel_tau_schedule == "linear":
            return _linear(first, last, progress)
        if self.config.gumbel_tau_schedule == "exponential":
            return first ** (1 - progress) * last**progress
        return first


def _linear(first: float, last: float, progress: float) -> float:
    return (1 - progress) * first + progress * last
