"""Figures of a report by preset and by place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_lpc.study.entries import Entry
from megatron_lpc.study.metrics import Metric, default_metrics, read_metrics

ACCURACY = "rewards/accuracies"
LPC: dict[str, Any] = {
    "metrics": {
        "prior": {ACCURACY: 0.5, "lpc/kl": 0.75, "lpc/active_codes": 2.0, "loss": 0.6, "rewards/margins": 0.1},
        "marginal": {ACCURACY: 0.51},
    },
    "information": {"bits": 1.0},
    "support": {
        "accuracy": {"support": 0.9, "support_exact": 0.8, "swapped": 0.3},
        "groups": {"a.b": {"accuracy": 0.7}},
    },
}
PLAIN = {"metrics": {"none": {ACCURACY: 0.55, "loss": 0.65}}, "information": None, "support": None}
VECTOR = PLAIN | {"support": {"accuracy": {"prior": 0.5, "support": 0.85}}}
REPORT = {"data": {"new.1": LPC, "plain": PLAIN, "vector": VECTOR}}


def metrics(value: Any) -> list[Metric]:
    return read_metrics(Entry(Path("study.yaml"), "metrics", value))


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("support(new.1)", 90),
        ("support_exact(new.1)", 80),
        ("swapped(new.1)", 30),
        ("accuracy_exact(vector)", 85),
        ("prior(new.1)", 50),
        ("marginal(new.1)", 51),
        ("accuracy(new.1)", 90),
        ("accuracy_exact(new.1)", 80),
        ("kl(new.1)", 0.75),
        ("bits(new.1)", 1),
        ("active_codes(new.1)", 2),
        ("loss(new.1)", 0.6),
        ("margin(new.1)", 0.1),
        ("prior(plain)", 55),
        ("accuracy(plain)", 55),
        ("loss(plain)", 0.65),
        ("support(plain)", None),
        ("bits(plain)", None),
        ("prior(other)", None),
        ("data.new.1.support.groups.a.b.accuracy", 0.7),
        ("data.new.1.support.groups", None),
    ],
)
def test_the_figure_of(spec: str, value: float | None) -> None:
    (metric,) = metrics([spec])
    assert metric.value(REPORT) == (None if value is None else pytest.approx(value))
    assert metric.needs_support == any(word in spec.partition("(")[0] for word in ("support", "swapped", "accuracy"))


def test_named_metrics() -> None:
    one, first, scaled = metrics(
        {
            "one": "support(new.1)",
            "first": ["data.new.1.nothing", "data.new.1.metrics.prior.loss"],
            "scaled": {"path": "data.new.1.metrics.prior.loss", "scale": 10, "digits": 1},
        }
    )
    assert (one.heading, one.value(REPORT)) == ("one, %", 90)
    assert (first.heading, first.value(REPORT), first.digits) == ("first", 0.6, 3)
    assert (scaled.value(REPORT), scaled.digits) == (6, 1)


def test_what_is_shown_unless_it_is_named() -> None:
    names = [metric.name for metric in default_metrics(["a", "b"])]
    assert names[:6] == ["prior(a)", "support(a)", "support_exact(a)", "marginal(a)", "kl(a)", "bits(a)"]
    assert len(names) == 12
