"""What a run has left in the folder of `--save`, also while it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from megatron_lpc.training.metrics_file import METRICS_FILE, read_metrics

CLOCK = {"step_seconds", "tokens_per_sec", "mfu"}
"""Metrics that no two runs share."""


def steps_done(save: Path) -> int:
    """Of the last whole line of the metrics; 0 where there is none."""
    try:
        lines = (save / METRICS_FILE).read_text(errors="replace").splitlines()
    except OSError:
        return 0
    numbers = (re.match(r'\{"iteration": (\d+),.*\}$', line) for line in reversed(lines[-2:]))
    return next((int(found[1]) for found in numbers if found), 0)


def newest_checkpoint(save: Path) -> int:
    """Its step; 0 where there is none."""
    try:
        return int((save / "latest_checkpointed_iteration.txt").read_text())
    except OSError:
        return 0


def metrics(save: Path) -> list[dict[str, Any]]:
    """All lines of steps and evaluations, without what a clock measured."""
    return [{name: line[name] for name in line.keys() - CLOCK} for line in read_metrics(save / METRICS_FILE)]


def checksums(save: Path, iteration: int) -> dict[str, str]:
    """File -> checksum of the weights, the optimizer's tensors and the generators of a checkpoint, as saved."""
    files = json.loads((save / f"iter_{iteration:07d}" / "integrity.json").read_text())["files"]
    # Both name the folder, which is another one.
    return {name: value for name, value in files.items() if name not in ("description.json", ".metadata")}


def names(folder: Path) -> list[str]:
    """Of all that is in it, hidden or not."""
    return sorted(path.name for path in folder.iterdir())
