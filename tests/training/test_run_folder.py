"""A run that torchrun has started again goes on in its folder; another launch does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_lpc.config import ConfigError
from megatron_lpc.training.run_folder import is_restarted_in


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Whether an attempt, by its number, of this process's parent goes on in the folder."""

    def start(number: int, max_restarts: int = 3) -> bool:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(max_restarts))
        return is_restarted_in(tmp_path / "run")

    return start


def save_something(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text('{"iteration": 1}\n')


def test_the_same_launch_goes_on(attempt, tmp_path: Path) -> None:
    assert not attempt(0)
    save_something(tmp_path / "run")
    assert attempt(1)
    assert attempt(2)


def test_an_earlier_run_is_refused_at_every_attempt(attempt, tmp_path: Path) -> None:
    save_something(tmp_path / "run")
    for number in range(3):
        with pytest.raises(ConfigError, match="holds an earlier run"):
            attempt(number)


def test_another_agent_is_another_launch(attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(0)
    save_something(tmp_path / "run")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(ConfigError, match="holds an earlier run"):
        attempt(1)


def test_without_restarts_nothing_is_kept(attempt, tmp_path: Path) -> None:
    assert not attempt(0, max_restarts=0)
    assert not (tmp_path / "run").exists()
