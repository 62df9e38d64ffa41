"""The benchmark of training on a data set of a few pairs: that it measures, not what."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launch import run

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_train.py"


@pytest.mark.slow
@pytest.mark.distributed
def test_this_project_and_trl_side_by_side(tiny_run, tmp_path: Path) -> None:
    flags = ["--data", tiny_run.train_data, "--output", str(tmp_path), "--vocab-size", "320", "--steps", "1", "--rounds", "1"]
    flags += ["--global-batch-size", "4", "--micro-batch-size", "2", "--pack-to", "512", "--max-length", "128"]
    providers = ("trl", "trl-padding-free", "shared-packed", "shared-packed-lpc")
    run([sys.executable, str(TOOL), *flags, "--providers", *providers])
    results = json.loads((tmp_path / "results.json").read_text())
    assert "padding_free" in results["trl-padding-free"][0]["skipped"]
    (turns,) = results.pop("shared-packed-lpc/plain")
    seconds = {provider: sum(rounds[0]["seconds"]) for provider, rounds in results.items() if "seconds" in rounds[0]}
    assert list(seconds) == ["trl", "shared-packed", "shared-packed-lpc"]
    assert all(rounds[0]["peak_gb"] > 0 for provider, rounds in results.items() if provider in seconds)
    text = (tmp_path / "table.md").read_text()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    trl, padding_free, plain, lpc = [dict(zip(head, row, strict=True)) for row in rows]
    assert "padding_free" in padding_free["note"]
    assert trl["speed / TRL"] == trl["memory / TRL"] == "1.00"
    assert plain["pairs/s"] == f"{4 / seconds['shared-packed']:.2f}"
    assert lpc["speed / TRL"] == f"{seconds['trl'] / seconds['shared-packed-lpc']:.2f}"
    assert lpc["speed / plain"] == f"{turns['plain'][0] / turns['seconds'][0]:.3f}"
    assert plain["speed / plain"] == ""
    assert f"python tools/benchmark_train.py --data {Path(tiny_run.train_data).name} --device cpu --shape small" in text
    assert f"--providers {' '.join(providers)}`" in text
