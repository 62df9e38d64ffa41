"""What of the latent changes over training: temperature, prior mix, KL weight.

Each is a pure function of the iteration, so a resumed run needs no state to go on exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config.schema import LatentConfig


@dataclass(frozen=True)
class LatentState:
    """The latent's settings at one step."""

    tau: float
    """Temperature of the Gumbel-softmax."""
    prior_mix: float
    """Share m of the prior in z = (1 - m) z_q + m z_p."""
    kl_weight: float
    """Weight lambda of KL(q || p)."""


@dataclass(frozen=True)
class LatentSchedule:
    """Schedules of a run of `train_iters` steps. Raises ValueError for a run of no steps."""

    config: LatentConfig
    train_iters: int

    def __post_init__(self) -> None:
        if self.train_iters < 1:
            raise ValueError(f"train_iters is {self.train_iters}; a schedule needs at least one step")

    def at(self, iteration: int) -> LatentState:
        """Settings of step `iteration`, counted from 0; the last step (train_iters - 1) and all after it have the final values.

        A run of a single step has the first values. Raises ValueError for a negative iteration.
        """
        if iteration < 0:
            raise ValueError(f"iteration is {iteration}; steps are counted from 0")
        config = self.config
        progress = min(1.0, iteration / max(1, self.train_iters - 1))
        warmth = min(1.0, iteration / config.kl_warmup_iters) if config.kl_warmup_iters else 1.0
        return LatentState(
            tau=self._tau(progress),
            prior_mix=_linear(config.prior_mix_initial, config.prior_mix_final, progress),
            kl_weight=config.kl_weight * warmth,
        )

    def _tau(self, progress: float) -> float:
        first = self.config.gumbel_tau
        last = first if self.config.gumbel_tau_final is None else self.config.gumbel_tau_final
        curves = {
            "constant": lambda: first,
            "linear": lambda: _linear(first, last, progress),
            "exponential": lambda: first ** (1 - progress) * last**progress,
        }
        return curves[self.config.gumbel_tau_schedule]()


def _linear(first: float, last: float, progress: float) -> float:
    return (1 - progress) * first + progress * last
