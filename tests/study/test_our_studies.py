"""Quick forms of the studies of examples/: one seed of what the codes are for, by the program as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("study", "data", "measured_on", "at_least"),
    [
        # Without codes 50 percent of either.
        ("rankings", "pets", "divergent", 0.95),
        ("flips", "flips-100", "given", 0.95),
    ],
)
def test_codes_find_the_annotators(study: str, data: str, measured_on: str, at_least: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_lpc.study", f"examples/{study}/study.yaml", "--output", str(tmp_path)]
    subprocess.run([*command, "--data", data, "--seeds", "1", "--rows", "lpc"], check=True, cwd=ROOT)
    (report,) = (tmp_path / "runs" / data / "lpc").rglob("report*.json")
    accuracy = json.loads(report.read_text())["data"][measured_on]["support"]["accuracy"]
    assert accuracy["support_exact"] >= at_least
    assert accuracy["swapped"] <= 1 - at_least
