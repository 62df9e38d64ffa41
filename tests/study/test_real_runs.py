"""A study of real trainings, killed in the middle, ends with the table of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lpc.study.one_run import without_support


def study_of(tiny_run: Any, file: Path) -> Path:
    content = {
        "config": tiny_run.config,
        "seeds": [1, 2],
        "data": {"tiny": []},
        "options": {"group_column": "annotator", "posterior_context": 0, "train_iters": 3},
        "support": {"pairs": [0, 1, 2]},
        "rows": {"plain": {"latent_mode": "none"}, "lpc": {"latent_lr": 0.05}},
        "reference": "plain",
        "metrics": ["accuracy(disagree)", "prior(disagree)", "loss(disagree)", "kl(disagree)"],
        "keep_checkpoints": True,
    }
    file.write_text(yaml.safe_dump(content))
    return file


def start(file: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "megatron_lpc.study", str(file), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_table(tiny_run: Any, tmp_path: Path) -> None:
    file = study_of(tiny_run, tmp_path / "study.yaml")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    study = start(file, killed)
    second = killed / "runs" / "tiny" / "lpc" / "seed1"
    # One run is finished, and the next one has begun to train.
    while not (second / "metrics.jsonl").exists():
        assert study.poll() is None
        time.sleep(0.02)
    study.send_signal(signal.SIGKILL)
    study.wait()
    assert not list(second.glob("report*.json"))
    assert start(file, killed).wait() == 0
    assert start(file, whole).wait() == 0
    table = (whole / "table.md").read_text()
    assert (killed / "table.md").read_text() == table
    assert "| lpc | " in table
    assert "(n=" not in table
    of_none, of_one = (json.loads((second / f"report-{pairs}.json").read_text()) for pairs in (0, 1))
    assert of_none == without_support(of_one)

    # With another evaluation nothing is trained again.
    trained = (second / "metrics.jsonl").stat().st_mtime
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"support": {"pairs": 2}}))
    assert start(file, killed).wait() == 0
    assert (second / "report-2.json").exists()
    assert not (second / "report-1.json").exists()
    assert (second / "metrics.jsonl").stat().st_mtime == trained


def test_a_training_that_ends_early_has_no_report(tiny_run: Any, tmp_path: Path) -> None:
    flags = ["--config", tiny_run.config, "--train-iters", "3", "--exit-interval", "1", "--eval-interval", "1"]
    command = [sys.executable, "-m", "megatron_lpc.study.one_run", *flags, "--save", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: the training ended before its last step, so there is nothing to report" in done.stderr
    assert not list((tmp_path / "run").glob("report*.json"))


def test_without_support_pairs_a_group_is_known_by_its_prompts() -> None:
    accuracy = {"prior": 0.5, "posterior": 1.0, "marginal": 0.6, "support": 0.9, "support_exact": 0.8, "swapped": 0.1}
    support = {"query_pairs": 4, "accuracy": accuracy, "groups": {"ada": {"accuracy": 0.9}}, "left_out": []}
    report = {"support": {"pairs": 8, "seed": 1}, "data": {"d": {"metrics": {}, "support": support}}}
    found = without_support(report)
    assert found["support"] == {"pairs": 0, "seed": 1}
    of_data = found["data"]["d"]["support"]
    assert (of_data["accuracy"]["support"], of_data["accuracy"]["support_exact"]) == (0.5, 0.6)
    assert "swapped" not in of_data["accuracy"]
    assert of_data["groups"] == {}
    assert accuracy["support"] == 0.9


@pytest.mark.slow
def test_runs_of_several_processes(tiny_run: Any, tmp_path: Path) -> None:
    tables = []
    for processes in (1, 2):
        file = study_of(tiny_run, tmp_path / "study.yaml")
        content = yaml.safe_load(file.read_text()) | {"processes": processes, "seeds": [1], "metrics": ["kl(disagree)"]}
        file.write_text(yaml.safe_dump(content))
        output = tmp_path / str(processes)
        assert start(file, output).wait() == 0
        tables.append([line for line in (output / "table.md").read_text().splitlines() if line.startswith("| lpc")])
        assert ("--processes 2" in (output / "commands.sh").read_text()) == (processes == 2)
    assert tables[0] == tables[1] != []
