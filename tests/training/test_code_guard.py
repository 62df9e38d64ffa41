"""The guard over the codes speaks once when they collapse, names an option that counts, and is silent otherwise.

`code_histories.json`: KL and information of the 150 steps of three runs of examples/recovery, seed 1: `healthy` with
the options of lpc.yaml, `collapsed` with the paper's options (`defaults` in its README), `late` with the backbone's
learning rate for the head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_lpc.config import Config, LatentConfig, TrainingConfig, with_options
from megatron_lpc.training.code_guard import guard_lines
from megatron_lpc.training.watch import Watch

RUNS = json.loads((Path(__file__).parent / "code_histories.json").read_text())
LN8 = math.log(8)
HEALTHY = Config(
    latent=LatentConfig(codebook_size=8, codebook_init_std=0.5, posterior_input="difference", prior_mix_final=0.0),
    training=TrainingConfig(lr=2e-3, latent_lr=1e-2),
)
PAPER = with_options(HEALTHY, codebook_size=64, codebook_init_std=0.02, posterior_input="concat", latent_lr=1e-4)


def steps(kl: Sequence[float], information: Sequence[float]) -> Iterator[tuple[int, dict[str, float]]]:
    for number, (one, other) in enumerate(zip(kl, information, strict=True), start=1):
        yield number, {"lpc/kl": one, "lpc/information": other}


def told(config: Config, *phases: tuple[int, float, float], train_iters: int | None = None) -> list[str]:
    """The lines over phases of so many steps with one KL and information each, as fractions of ln K."""
    most = math.log(config.latent.codebook_size)
    kl = [most * one for count, one, _ in phases for _ in range(count)]
    information = [most * other for count, _, other in phases for _ in range(count)]
    return guard_lines(config, train_iters or len(kl), steps(kl, information))


def test_silent_on_a_healthy_run() -> None:
    assert guard_lines(HEALTHY, 150, steps(**RUNS["healthy"])) == []


def test_speaks_once_on_a_collapsed_run() -> None:
    lines = guard_lines(PAPER, 150, steps(**RUNS["collapsed"]))
    assert lines == [
        "warning: the codes have collapsed; try --posterior-input difference "
        "(steps 36 to 43: KL 0.000, information 0.000 nats; ln 64 = 4.16)"
    ]


def test_says_that_codes_recover() -> None:
    lines = guard_lines(with_options(HEALTHY, latent_lr=1e-4), 150, steps(**RUNS["late"]))
    assert [line.split(" (")[0] for line in lines] == [
        "warning: the codes have collapsed; try --latent-lr above 0.0001",
        "codes are active again",
    ]


def test_each_change_is_told_once() -> None:
    phases = (400, 0.3, 0.3), (110, 0, 0), (110, 0.3, 0.3), (110, 0, 0), (110, 0.3, 0.3)
    lines = told(HEALTHY, *phases, train_iters=1700)
    assert [line.split(" (")[0].split(";")[0] for line in lines] == [
        "warning: the codes have collapsed",
        "codes are active again",
        "warning: the codes have collapsed",
        "codes are active again",
    ]


@pytest.mark.parametrize(("information", "lines"), [(0.049, 1), (0.051, 2)])
def test_recovery_takes_more_than_the_end_of_collapse(information: float, lines: int) -> None:
    assert len(told(HEALTHY, (200, 0.001, 0.001), (200, 0.1, information))) == lines


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        pytest.param([(400, 0.004, 0.004)], "the codes have collapsed", id="hardly anything"),
        pytest.param(
            [(400, 0.2, 0.001)], "one code takes everything; try --usage-entropy-weight above 0", id="one code"
        ),
        pytest.param([(400, 0.0, 0.2)], None, id="the prompt tells the code"),
        pytest.param([(200, 0.02, 0.02), (200, 0.3, 0.3)], None, id="little in the first half"),
        pytest.param([(400, 0.02, 0.02)], "the codes tell little about a pair", id="little in the second half"),
        pytest.param([(400, 0.9, 0.3)], None, id="much"),
        pytest.param([(400, 1.1, 0.3)], "the posterior strays from the prior", id="too much"),
        pytest.param([(200, 1.1, 0.3), (200, 0.8, 0.3)], "the posterior strays from the prior", id="still much"),
    ],
)
def test_states(phases: list[tuple[int, float, float]], expected: str | None) -> None:
    lines = told(HEALTHY, *phases)
    assert len(lines) == (expected is not None)
    assert expected is None or expected in lines[0]


def test_window_averages_so_that_one_step_decides_nothing() -> None:
    assert told(HEALTHY, (100, 0.3, 0.3), (1, 0, 0), (100, 0.3, 0.3)) == []


def test_silent_in_warm_ups_and_short_runs() -> None:
    def first_step(config: Config, train_iters: int) -> int:
        (line,) = told(config, (train_iters, 0, 0))
        return int(line.split("steps ")[1].split(" ")[0])

    assert told(HEALTHY, (25, 0, 0)) == []
    assert first_step(HEALTHY, 1000) == 201, "100 steps of warm-up and a tenth of the run"
    assert first_step(with_options(HEALTHY, kl_warmup_iters=400), 1000) == 501
    assert first_step(HEALTHY, 10_000) == 1201, "but not more than 200 steps after the warm-up"


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"posterior_input": "bilinear", "kl_weight": 1.0}, "--posterior-input difference"),
        ({"kl_weight": 1.0, "latent_lr": 1e-4}, "--kl-weight below 1"),
        ({"latent_lr": 1e-3}, "--latent-lr above 0.001"),
        ({"codebook_lr": 1e-3}, "--codebook-lr above 0.001"),
        ({"codebook_init_std": 0.02}, "--codebook-init-std above 0.02"),
        ({}, "--latent-lr above 0.01"),
        ({"latent_inference": "exact", "group_column": "a"}, "--posterior-context 7"),
        ({"latent_inference": "exact"}, "--exact-temperature below 1"),
        ({"latent_inference": "exact", "posterior_context": 7, "latent_lr": 0.1}, "--latent-lr below 0.1"),
        ({"latent_inference": "exact", "posterior_context": 7}, "--codebook-lr above 0.015"),
    ],
)
def test_advice_is_the_first_option_that_this_run_sets_otherwise(changes: dict[str, Any], flag: str) -> None:
    (line,) = told(with_options(HEALTHY, **changes), (100, 0, 0))
    assert f"; try {flag} (" in line


def test_advice_on_excess_depends_on_the_prior_mix() -> None:
    (line,) = told(with_options(HEALTHY, prior_mix_final=1.0), (200, 1.5, 0.3))
    assert "; try --prior-mix-final below 1 (" in line
    (line,) = told(HEALTHY, (200, 1.5, 0.3))
    assert "; try --kl-weight above 0.05 (" in line


def test_silent_without_codes_without_figures_and_on_few_pairs() -> None:
    assert told(with_options(HEALTHY, latent_mode="continuous"), (200, 0, 0)) == []
    assert told(with_options(HEALTHY, global_batch_size=4), (200, 0, 0)) == [], "one pair has no information"
    assert guard_lines(HEALTHY, 200, [(step, {"loss": 0.5}) for step in range(1, 201)]) == []
    assert told(HEALTHY, (200, math.nan, math.nan)) == [], "skipped steps"


def test_a_watched_run_prints_the_line_and_the_verdicts() -> None:
    console = Console(file=StringIO(), width=160)
    with Watch(HEALTHY, 150, 0, console) as watch:
        for number, metrics in steps(**RUNS["collapsed"]):
            watch.step(number, {"loss": 0.5, **metrics})
        few = {"lpc/kl": 0.0, "lpc/information": 0.0}
        much = {"lpc/kl": 0.7, "lpc/information": 0.69}
        watch.evaluations(150, {"a/prior": few, "a/posterior": few, "b/c/prior": much, "d/none": {"loss": 0.5}})
    lines = console.file.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("warning: the codes have collapsed; try ")]) == 1
    assert lines[-2:] == [
        "codes on a at step 150: collapsed "
        "(KL 0.000, information 0.000 nats; ln 8 = 2.08: the posterior tells nothing about a pair)",
        "codes on b/c at step 150: active (KL 0.700, information 0.690 nats; ln 8 = 2.08)",
    ]
