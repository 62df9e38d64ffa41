"""The rule of examples/recovery: what accuracy can be had at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import load_program

FILE = Path(__file__).parents[1] / "examples" / "recovery" / "at_most.py"
at_most = load_program("examples/recovery/at_most.py")


def test_annotators_who_disagree_in_part() -> None:
    choices = {"ada": "0000", "ben": "1111", "cleo": "0001", "dan": "1110"}
    labelled = [{name: bits[place] for name, bits in choices.items()} for place in range(4)]
    assert at_most.without_codes(labelled) == 1 / 2
    of_three = [{name: bits for name, bits in chosen.items() if name != "dan"} for chosen in labelled]
    assert at_most.without_codes(of_three) == 2 / 3
    assert at_most.with_two_codes(labelled) == (4 + 4 + 3 + 3) / 16


def test_the_report(tmp_path: Path) -> None:
    pairs = [("p", "x", "y", "ada"), ("p", "y", "x", "ben"), ("q", "x", "y", "ada"), ("q", "x", "y", "ben")]
    rows = [dict(zip(("prompt", "chosen", "rejected", "annotator"), pair, strict=True)) for pair in pairs]
    file, output = tmp_path / "pairs.jsonl", tmp_path / "report.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"d={file}", f"again={file}"]
    subprocess.run([sys.executable, str(FILE), "--data", *sets, "--output", str(output)], check=True)
    reports = json.loads(output.read_text())["data"]
    assert reports["again"] == (report := reports["d"])
    assert report["metrics"]["prior"]["rewards/accuracies"] == pytest.approx(0.75)
    assert report["support"]["accuracy"]["support"] == 1
