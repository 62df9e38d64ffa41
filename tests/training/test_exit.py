"""When a run exits before its last step."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from megatron_lpc.config import Config, TrainingConfig
from megatron_lpc.training import exit as exit_module
from megatron_lpc.training.exit import ExitRequest

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def asked_ranks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One rank; gives what it told the others, step by step."""
    told: list[bool] = []

    def on_any_rank(flag: bool, device: torch.device) -> bool:
        told.append(flag)
        return flag

    monkeypatch.setattr(exit_module, "on_any_rank", on_any_rank)
    before = signal.getsignal(signal.SIGTERM)
    yield told
    signal.signal(signal.SIGTERM, before)


def request(began: float | None = None, **training: int) -> ExitRequest:
    return ExitRequest(Config(training=TrainingConfig(**training)), time.monotonic() if began is None else began, 12)


def due_steps(exit_request: ExitRequest) -> list[int]:
    return [step for step in range(1, 13) if exit_request.is_due(step, CPU)]


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
    assert not exit_request.is_due(1, CPU)
    os.kill(os.getpid(), signal.SIGTERM)
    assert exit_request.is_due(2, CPU)
