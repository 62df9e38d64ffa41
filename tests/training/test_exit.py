"""When a run exits before its last step."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from megatron_lpc.config import Config, TrainingConfig
from megatron_lpc.training import exit as exit_module
from megatron_lpc.training.exit import Due, ExitRequest, SaveWatch, shutdown_timeout

GROUPS: Any = None
"""Asked in the fixture's place."""


@pytest.fixture(autouse=True)
def asked_ranks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One rank; gives what it told the others, step by step."""
    told: list[int] = []

    def largest_on_any_rank(number: int, groups: object) -> int:
        told.append(number)
        return number

    monkeypatch.setattr(exit_module, "largest_on_any_rank", largest_on_any_rank)
    return told


def request(began: float | None = None, **training: int) -> ExitRequest:
    return ExitRequest(Config(training=TrainingConfig(**training)), time.monotonic() if began is None else began, 12)


def due_steps(exit_request: ExitRequest) -> list[int]:
    return [step for step in range(1, 13) if exit_request.due(step, GROUPS) == Due.EXIT]


def test_without_a_reason_a_run_goes_on(asked_ranks: list[int]) -> None:
    assert due_steps(request()) == []
    assert len(asked_ranks) == 12, "one all-reduce per step, always"


def test_interval_ends_every_run_but_the_one_that_is_done() -> None:
    assert due_steps(request(exit_interval=4)) == [4, 8]


def test_duration_counts_from_the_start_of_the_process() -> None:
    assert due_steps(request(time.monotonic() - 59, exit_duration_in_mins=1)) == []
    assert due_steps(request(time.monotonic() - 60, exit_duration_in_mins=1)) == list(range(1, 13))


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step(number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with request() as exit_request:
        assert exit_request.due(1, GROUPS) == Due.NOTHING
        for _ in range(2):  # A second one within a second is the same.
            os.kill(os.getpid(), number)
        assert exit_request.due(2, GROUPS) == Due.EXIT
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_run_that_fails_speaks_before_sigterm_ends_it() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(ZeroDivisionError), request() as exit_request:
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == exit_request._on_stop
    signal.signal(signal.SIGTERM, before[0])
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_interrupt_ends_it_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], second: int
) -> None:
    monkeypatch.setattr(exit_module, "_SAME_SIGNAL_SECONDS", 0.0)
    with request():
        os.kill(os.getpid(), signal.SIGINT)
        assert (
            capfd.readouterr().err == "interrupted: the run exits after this step, saved; once more ends it at once\n"
        )
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


def test_more_of_sigterm_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_module, "_SAME_SIGNAL_SECONDS", 0.0)
    with request() as exit_request:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert exit_request.due(1, GROUPS) == Due.EXIT


def test_usr1_saves_once_and_goes_on() -> None:
    # It may have come in start-up, when a launcher has blocked it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # Of this process, in which other threads may be.
    with request() as exit_request:
        assert [exit_request.due(step, GROUPS) for step in (1, 2)] == [Due.SAVE, Due.NOTHING]
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert [exit_request.due(step, GROUPS) for step in (3, 4)] == [Due.SAVE, Due.NOTHING]
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert exit_request.due(5, GROUPS) == Due.EXIT, "which saves too"


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
