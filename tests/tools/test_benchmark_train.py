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
    providers = ("trl", "trl-padding-free", "shared-packed-lpc")
    run([sys.executable, str(TOOL), *flags, "--providers", *providers])
    lines = json.loads((tmp_path / "results.json").read_text())["table"]
    assert [line["provider"] for line in lines] == ["TRL DPOTrainer", "TRL DPOTrainer, padding-free", "shared prompt, packed, LPC"]
    assert "padding_free" in lines[1]["note"]
    for line in (lines[0], lines[2]):
        assert line["pairs/s"] > 0
        assert line["tokens/s"] > line["pairs/s"]
        assert line["peak GB"] > 0
    assert lines[0]["speed / TRL"] == lines[0]["memory / TRL"] == 1
    assert lines[2]["speed / TRL"] == pytest.approx(lines[2]["pairs/s"] / lines[0]["pairs/s"])
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| provider | pairs/s | tokens/s |")
    assert "python tools/benchmark_train.py --device cpu --shape small" in text
