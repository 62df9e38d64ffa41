"""Ranks wait for rank 0 to tokenize for as long as it takes, and learn of its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from launch import torchrun

TIMEOUT_SECONDS = 4


@pytest.mark.distributed
def test_ranks_wait_longer_than_a_collective_may(tiny_run, tmp_path: Path) -> None:
    options = yaml.safe_load(Path(tiny_run.config).read_text(encoding="utf-8"))
    options["data"]["data_cache_path"] = str(tmp_path / "cache")
    config, bad = tmp_path / "slow.yaml", tmp_path / "bad.jsonl"
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    bad.write_text(json.dumps({"prompt": "p"}) + "\n", encoding="utf-8")
    worker = Path(__file__).parent / "slow_data_worker.py"
    done = torchrun(2, worker, str(config), str(bad), str(TIMEOUT_SECONDS))
    for rank in range(2):
        assert f"rank {rank} of 2: 48 pairs; {bad}:1: column `chosen` is missing" in done.stdout
