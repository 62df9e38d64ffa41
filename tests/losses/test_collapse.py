"""The verdict over the codes of an evaluation."""

from __future__ import annotations

import math

import pytest

from megatron_lpc.losses import code_verdict


@pytest.mark.parametrize("num_codes", [2, 8, 256])
@pytest.mark.parametrize(
    ("kl", "information", "state", "why"),
    [
        (0.0, 0.0, "collapsed", "the posterior tells nothing about a pair"),
        (0.0049, 0.0049, "collapsed", "the posterior tells nothing about a pair"),
        (0.3, 0.0049, "partly collapsed", "all pairs have the same posterior"),
        (0.0051, 0.0051, "partly collapsed", "codes tell little about a pair"),
        (0.3, 0.049, "partly collapsed", "codes tell little about a pair"),
        (0.3, 0.051, "active", ""),
        (0.0, 0.3, "active", "the prompt alone tells the code"),
        (1.1, 0.3, "active", "KL above ln K, for the prior expects other codes"),
    ],
)
def test_states(num_codes: int, kl: float, information: float, state: str, why: str) -> None:
    """`kl` and `information` are fractions of ln K, so that the verdict does not depend on K."""
    most = math.log(num_codes)
    verdict = code_verdict({"lpc/kl": kl * most, "lpc/information": information * most}, num_codes)
    assert verdict is not None
    assert verdict.state == state
    figures, _, reason = verdict.why.partition(": ")
    assert reason == why
    assert figures == f"KL {kl * most:.3f}, information {information * most:.3f} nats; ln {num_codes} = {most:.2f}"


def test_no_verdict_without_codes() -> None:
    assert code_verdict({"loss": 0.5}, 8) is None
    assert code_verdict({"lpc/kl": 0.5}, 8) is None
    assert code_verdict({"lpc/kl": math.nan, "lpc/information": math.nan}, 8) is None
