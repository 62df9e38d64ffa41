"""Profiles of chosen steps and ranks, and snapshots of GPU memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from megatron_lpc.config import CheckpointConfig, Config, ConfigError, LoggingConfig
from megatron_lpc.platform import Platform
from megatron_lpc.training.profiling import Profiler, memory_history


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


def options(save: Path, **logging: object) -> Config:
    chosen = {"profile": True, "profile_step_start": 3, "profile_step_end": 5, "profile_ranks": [1]} | logging
    return Config(checkpoint=CheckpointConfig(save=str(save)), logging=LoggingConfig(**chosen))


def run(config: Config, start_iter: int, train_iters: int) -> None:
    """Step number n adds n + 1 times."""
    with Profiler(config, start_iter, train_iters) as profiler:
        for iteration in range(start_iter, train_iters):
            for _ in range(iteration + 1):
                torch.ones(3).add(1)
            profiler.step()


def additions(trace: Path) -> int:
    events = json.loads(trace.read_text())["traceEvents"]
    return sum(event.get("name") == "aten::add" for event in events)


@pytest.mark.parametrize(
    ("start_iter", "train_iters", "steps", "expected"),
    [(0, 8, "3_to_5", 4 + 5), (4, 8, "4_to_5", 5), (0, 4, "3_to_4", 4)],
)
def test_chosen_steps_are_in_the_trace(
    tmp_path: Path, start_iter: int, train_iters: int, steps: str, expected: int
) -> None:
    run(options(tmp_path), start_iter, train_iters)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == f"rank_00001_steps_{steps}.json"
    assert additions(trace) == expected


def test_other_ranks_and_other_runs_profile_nothing(tmp_path: Path) -> None:
    run(options(tmp_path, profile_ranks=[0]), 0, 8)
    run(options(tmp_path, profile=False), 0, 8)
    assert list(tmp_path.iterdir()) == []


def test_steps_that_the_run_does_not_make_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--profile-step-start 3, --profile-step-end 5: this run makes steps 5 to 7"):
        Profiler(options(tmp_path), 5, 8)


def test_memory_is_recorded_on_the_last_rank_and_written_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text("snapshot"))
    snapshot = tmp_path / "snapshot.pickle"
    config = options(tmp_path, record_memory_history=True, memory_snapshot_path=str(snapshot))
    platform = Platform(torch.device("cuda"), "nccl")
    with pytest.raises(MemoryError), memory_history(config, platform):
        raise MemoryError
    assert snapshot.read_text() == "snapshot"
    assert calls == [{"max_entries": 100_000}, {"enabled": None}]
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    with memory_history(config, platform):
        assert len(calls) == 2, "no other rank records"
