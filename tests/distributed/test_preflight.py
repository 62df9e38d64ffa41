"""`--preflight` on real processes: one table, the exit code, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from launch import torchrun

from megatron_lpc.training import preflight_checks
from megatron_lpc.training.preflight_checks import agreed, clocks, shared_folder


@pytest.mark.distributed
def test_a_sound_run_and_one_that_is_not(tiny_run: Any, tmp_path: Path) -> None:
    save = tmp_path / "new" / "run"
    flags = ["--config", tiny_run.config, "--tensor-model-parallel-size", "2", "--save", str(save), "--preflight"]
    done = torchrun(2, "-m", "megatron_lpc.train", *flags)
    lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert len(lines) >= 10
    assert all(line.rstrip(" │").endswith("ok") for line in lines if line[1:20].strip()), done.stdout
    found = ("1 hosts x 2 processes", "torch 2.", "GB/s between 2 processes", "ms apart", "GB free", "can be read")
    assert [text for text in found if text not in done.stdout] == []
    assert os.listdir(tmp_path) == []

    flags[-1:] = ["--preflight", "--train-data", str(tmp_path / "none.jsonl")]
    done = torchrun(2, "-m", "megatron_lpc.train", *flags, check=False)
    assert done.returncode != 0
    assert "error: the preflight failed: train_data" in done.stderr
    # The table wraps long paths.
    found = "".join(line.split("│")[2].strip() for line in done.stdout.splitlines() if line.startswith("│"))
    assert "none.jsonl" in found


@pytest.fixture
def found_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the other ranks find this, and rank 0 what it does."""

    def others(*items: Any) -> None:
        monkeypatch.setattr(preflight_checks, "_gathered", lambda item: [item, *items])

    return others


def test_what_ranks_do_not_agree_on(found_by: Any) -> None:
    found_by(("b", True, "torch 2.12"), ("c", True, "torch 2.13"))
    check = agreed("versions", lambda: "torch 2.13")
    assert not check.is_sound
    assert check.result == "rank 0 and 1 others: torch 2.13, rank 1 and 0 others: torch 2.12"
    found_by(("b", True, "torch 2.13"), ("c", True, None))
    assert agreed("versions", lambda: "torch 2.13").is_sound
    found_by(("b", False, "no such file"))
    assert agreed("tokenizer", lambda: "400").result == "rank 1 on b: no such file"


def test_an_error_of_this_rank_is_a_finding(found_by: Any) -> None:
    found_by(("b", True, "well"))

    def fails() -> str:
        raise ValueError("broken\nand more")

    check = agreed("data", fails)
    assert not check.is_sound
    assert check.result.endswith(": broken")


def test_clocks_that_differ(found_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_checks.dist, "barrier", lambda: None)
    found_by(0.0)
    assert not clocks().is_sound


def test_a_folder_that_is_not_shared(found_by: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight_checks.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(preflight_checks.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(preflight_checks, "wait_for_all_ranks", lambda: None)
    monkeypatch.setattr(preflight_checks, "_FOLDER_PATIENCE", 0.1)
    found_by(("b", True, ""))
    check = shared_folder("save", str(tmp_path / "run"))
    assert not check.is_sound
    assert "sees the files of 1 ranks, of 2; it is not one shared folder" in check.result
    found_by(("b", True, None))
    assert shared_folder("data_cache_path", str(tmp_path / "run"), may_be_of_host=True).is_sound
    assert os.listdir(tmp_path) == []
