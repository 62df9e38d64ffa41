"""The latent schedule at its ends and in the middle."""

from __future__ import annotations

from typing import Literal

import pytest

from megatron_lpc.config.schema import LatentConfig
from megatron_lpc.losses import LatentSchedule, LatentState


def test_default_is_the_posterior_throughout() -> None:
    schedule = LatentSchedule(LatentConfig(), train_iters=11)
    assert {schedule.at(step) for step in (0, 5, 10)} == {LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.05)}


def test_paper_goes_from_posterior_to_prior() -> None:
    schedule = LatentSchedule(LatentConfig(prior_mix_final=1.0), train_iters=11)
    assert schedule.at(0).prior_mix == 0.0
    assert schedule.at(5).prior_mix == 0.5
    assert schedule.at(10).prior_mix == 1.0
    assert schedule.at(10_000) == schedule.at(10)


@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.0), (1.0, 1.0), (0.75, 0.25)])
def test_prior_mix_reaches_both_ends_exactly(initial: float, final: float) -> None:
    schedule = LatentSchedule(LatentConfig(prior_mix_initial=initial, prior_mix_final=final), train_iters=8)
    assert (schedule.at(0).prior_mix, schedule.at(7).prior_mix) == (initial, final)


@pytest.mark.parametrize(("kind", "middle"), [("constant", 2.0), ("linear", 1.25), ("exponential", 1.0)])
def test_tau(kind: Literal["constant", "linear", "exponential"], middle: float) -> None:
    final = None if kind == "constant" else 0.5
    schedule = LatentSchedule(
        LatentConfig(gumbel_tau=2.0, gumbel_tau_final=final, gumbel_tau_schedule=kind), train_iters=5
    )
    assert schedule.at(0).tau == 2.0
    assert schedule.at(2).tau == pytest.approx(middle)
    assert schedule.at(4).tau == pytest.approx(2.0 if final is None else final)


def test_tau_stays_without_a_final_value() -> None:
    schedule = LatentSchedule(LatentConfig(gumbel_tau=2.0, gumbel_tau_schedule="linear"), train_iters=5)
    assert [schedule.at(i).tau for i in range(5)] == [2.0] * 5


def test_kl_warmup_rises_from_zero() -> None:
    schedule = LatentSchedule(LatentConfig(kl_weight=0.2, kl_warmup_iters=4), train_iters=100)
    assert [schedule.at(i).kl_weight for i in (0, 1, 4, 99)] == pytest.approx([0, 0.05, 0.2, 0.2])


def test_a_single_step_has_the_first_values() -> None:
    assert LatentSchedule(LatentConfig(), train_iters=1).at(0).prior_mix == 0.0


def test_errors() -> None:
    with pytest.raises(ValueError, match="train_iters is 0; a latent schedule needs at least one step"):
        LatentSchedule(LatentConfig(), train_iters=0)
    with pytest.raises(ValueError, match="iteration is -1; steps are counted from 0"):
        LatentSchedule(LatentConfig(), train_iters=3).at(-1)
