"""What a step logs."""

from __future__ import annotations

import pytest
from frozen_runs import FROZEN, config_of, train_run

from megatron_lpc.training.setup import RunContext

SCHEDULED = {"lpc/tau", "lpc/prior_mix", "lpc/kl_weight"}


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((), SCHEDULED),
        (("--latent-inference", "exact"), set()),
        (("--latent-mode", "continuous"), set()),
        (("--latent-mode", "gaussian"), {"lpc/kl_weight"}),
    ],
)
def test_the_latent_schedule_is_logged_where_it_counts(
    tiny_run, context: RunContext, flags: tuple[str, ...], wanted: set[str]
) -> None:
    trained = train_run(context, config_of(tiny_run, *FROZEN, *flags))
    assert trained.metrics[0].keys() & SCHEDULED == wanted
