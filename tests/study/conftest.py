"""A small study, of which no run is a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lpc.study.plan import plan_runs
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.study_file import read_study

STUDY: dict[str, Any] = {
    "config": "examples/recovery/plain.yaml",
    "seeds": [1, 2],
    "data": {"two": [], "three": []},
    "options": {
        "latent_mode": "lpc",
        "posterior_context": 0,
        "codebook_size": 8,
        "kl_warmup_iters": 7,
        "train_data": ["{data}/train.jsonl"],
        "valid_data": {"d": "{data}/test.jsonl", "a": "{data}/agree.jsonl"},
    },
    "support": {"data": "{data}/valid.jsonl", "pairs": 4},
    "rows": {"plain": {"latent_mode": "none"}, "both": {"gumbel_tau": 2.0, "latent_lr": 0.5}},
    "sweep": {"codebook_size": [2, 8], "kl_weight": [0.0, 0.5]},
    "metrics": ["support(d)", "prior(d)", "accuracy(a)", "kl(d)", "bits(d)", "active_codes(d)"],
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the study start at the root of the repository."""
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes the study with other values of some keys; None leaves one out."""

    def write(**changes: Any) -> Path:
        content = {key: value for key, value in (STUDY | changes).items() if value is not None}
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def planned(write_study: Callable[..., Path], tmp_path: Path) -> Callable[..., list[PlannedRun]]:
    """Plans the runs of the study with other values of some keys, on the set of data `two`."""

    def plan(seeds: tuple[int, ...] = (1,), **changes: Any) -> list[PlannedRun]:
        return plan_runs(read_study(write_study(**changes)), tmp_path, data=["two"], seeds=seeds)

    return plan


def report(support: float) -> dict[str, Any]:
    metrics = {"rewards/accuracies": 0.5, "lpc/kl": 0.75, "lpc/active_codes": 2.0}
    found = {"metrics": {"prior": metrics}, "information": {"bits": 1.0}, "support": {"accuracy": {"support": support}}}
    return {"data": {"d": found, "a": found}}


@pytest.fixture
def finish() -> Callable[..., None]:
    """Leaves what a run with this accuracy under support leaves."""

    def write(run: PlannedRun, support: float = 0.9) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.keep_options()
        for file in run.reports.values():
            (run.folder / file).write_text(json.dumps(report(support)))

    return write
