"""When a run exits before its last step."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from megatron_lpc.config import Config, TrainingConfig
from megatron_lpc.training import exit as exit_module
from megatron_lpc.training.exit import ExitRequest, SaveWatch, shutdown_timeout

GROUPS: Any = None
"""Asked in the fixture's place."""


@pytest.fixture(autouse=True)
def asked_ranks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One rank; gives what it told the others, step by step."""
    told: list[bool] = []

    def on_any_rank(flag: bool, groups: object) -> bool:
        told.append(flag)
        return flag

    monkeypatch.setattr(exit_module, "on_any_rank", on_any_rank)
    before = signal.getsignal(signal.SIGTERM)
    yield told
    signal.signal(signal.SIGTERM, before)


def request(began: float | None = None, **training: int) -> ExitRequest:
    return ExitRequest(Config(training=TrainingConfig(**training)), time.monotonic() if began is None else began, 12)


def due_steps(exit_request: ExitRequest) -> list[int]:
    return [step for step in range(1, 13) if exit_request.is_due(step, GROUPS)]


def test_without_a_reason_a_run_goes_on(asked_ranks: list[bool]) -> None:
    assert due_steps(request()) == []
    assert len(asked_ranks) == 12, "one all-reduce per step, always"


def test_interval_ends_every_run_but_the_one_that_is_done() -> None:
    assert due_steps(request(exit_interval=4)) == [4, 8]


def test_duration_counts_from_the_start_of_the_process() -> None:
    assert due_steps(request(time.monotonic() - 59, exit_duration_in_mins=1)) == []
    assert due_steps(request(time.monotonic() - 60, exit_duration_in_mins=1)) == list(range(1, 13))


def test_signal() -> None:
    exit_request = request()
    assert not exit_request.is_due(1, GROUPS)
    os.kill(os.getpid(), signal.SIGTERM)
    assert exit_request.is_due(2, GROUPS)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 30),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}, 600),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600", "PET_SHUTDOWN_TIMEOUT": "90"}, 90),
    ],
)
def test_timeout_of_the_agent(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int) -> None:
    assert shutdown_timeout(variables) is None, "torchrun did not start this process"
    under_torchrun = {"TORCHELASTIC_RUN_ID": "none"} | variables
    assert shutdown_timeout(under_torchrun) == expected
    monkeypatch.setattr(exit_module, "_agent_takes_timeout", lambda: False)
    assert shutdown_timeout(under_torchrun) == 30, "before torch 2.12"


def test_a_save_that_is_too_slow_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")
    watch = SaveWatch()
    watch.saved(59)
    assert capsys.readouterr().err == ""
    watch.saved(75.4)
    message = capsys.readouterr().err
    assert message.startswith(
        "warning: saving a checkpoint took 75 s, and torchrun kills its workers 60 s after SIGTERM"
    )
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=180" in message
    watch.saved(80)
    assert capsys.readouterr().err == ""


def test_an_old_agent_has_another_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(exit_module, "_agent_takes_timeout", lambda: False)
    SaveWatch().saved(31)
    assert "--exit-duration-in-mins" in capsys.readouterr().err
