"""Quick forms of the studies of examples/: one seed of what the codes are for, by the program as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("study", "data", "row", "measured_on"),
    [
        # Without codes 50 percent of either.
        ("rankings/study", "pets", "lpc", "divergent"),
        ("flips/study", "flips-100", "lpc", "given"),
        ("recovery/ablations", "2-annotators", "exact in episodes", "disagree"),
    ],
)
def test_codes_find_the_annotators(study: str, data: str, row: str, measured_on: str, tmp_path: Path) -> None:
    accuracy = run(study, data, row, tmp_path)["data"][measured_on]["support"]["accuracy"]
    assert accuracy["support_exact"] >= 0.95
    assert accuracy["swapped"] <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_codes_collapse_where_the_posterior_reads_both_responses(tmp_path: Path) -> None:
    found = run("recovery/ablations", "2-annotators", "posterior_input=concat", tmp_path)["data"]["disagree"]
    assert found["metrics"]["prior"]["lpc/kl"] < 0.02
    assert found["support"]["accuracy"]["support"] == pytest.approx(0.5, abs=0.05)


def run(study: str, data: str, row: str, output: Path) -> Any:
    """The report of seed 1 of a row."""
    command = [sys.executable, "-m", "megatron_lpc.study", f"examples/{study}.yaml", "--output", str(output)]
    subprocess.run([*command, "--data", data, "--seeds", "1", "--rows", row], check=True, cwd=ROOT)
    (report,) = (output / "runs" / data / row).rglob("report*.json")
    return json.loads(report.read_text())
