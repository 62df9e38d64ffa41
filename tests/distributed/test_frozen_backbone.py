"""The training program with a frozen backbone on several ranks: stages without a head, and a cache that ranks fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launch import torchrun

from megatron_lpc.training.metrics_file import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
CLOCK = {"tokens_per_sec", "mfu", "step_seconds"}
FLAGS = ("--freeze-backbone", "--lr", "5e-7", "--latent-lr", "1e-2", "--train-iters", "6", "--save-interval", "3")
PP2 = ("--pipeline-model-parallel-size", "2")
TP2 = ("--tensor-model-parallel-size", "2", "--sequence-parallel")


def _train(tiny_run, save: Path, *flags: str, processes: int = 2) -> str:
    options = ("--config", tiny_run.config, "--save", str(save), *FLAGS, *flags)
    return torchrun(processes, "-m", "megatron_lpc.train", *options).stderr


def _metrics(save: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(save / "metrics.jsonl")]


def test_a_pipeline_resumes_exactly(tiny_run, tmp_path: Path) -> None:
    """Its first stage has nothing to train, and tells how many updates there were."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    _train(tiny_run, whole, *PP2)
    _train(tiny_run, half, *PP2, "--exit-interval", "3")
    _train(tiny_run, half, *PP2, "--load", "auto")
    assert _metrics(half) == _metrics(whole)
    assert all(line["lr"] > 0 for line in _metrics(whole) if "evaluation" not in line)


def test_ranks_fill_a_cache_for_any_parallel_layout(tiny_run, tmp_path: Path) -> None:
    cache = ("--cache-hidden-states", str(tmp_path / "cache"))
    said = _train(tiny_run, tmp_path / "dp2", *cache, "--use-distributed-optimizer")
    assert said.count("Hidden states of train: ") == 1
    assert "Hidden states" not in _train(tiny_run, tmp_path / "tp2", *cache, *TP2)
    _train(tiny_run, tmp_path / "uncached", *TP2)
    for name in ("dp2", "tp2"):
        for line, other in zip(_metrics(tmp_path / name), _metrics(tmp_path / "uncached"), strict=True):
            assert line["loss"] == pytest.approx(other["loss"], abs=1e-5), name
