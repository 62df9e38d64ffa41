"""Example generations of a run, by a stand-in for the process that generates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_lpc.config import ConfigError, parse_args
from megatron_lpc.evaluation import example_generations
from megatron_lpc.evaluation.example_generations import check_generations
from megatron_lpc.train import main as train
from megatron_lpc.training.build import assemble_run
from megatron_lpc.training.setup import start_distributed, stop_distributed
from megatron_lpc.training.watch import Watch

GENERATE = ("--eval-generations", "2", "--eval-generation-tokens", "8")
STAND_IN = """
import json, os, sys
from pathlib import Path
job = json.load(sys.stdin)
job["environment"] = {name: os.environ.get(name) for name in ("RANK", "OMP_NUM_THREADS")}
Path(job["output"]).parent.mkdir(exist_ok=True)
Path(job["output"]).with_suffix(".job").write_text(json.dumps(job))
if FAILS:
    sys.exit("loading\\nerror: --load x: no room")
line = {"evaluation": "agree", "prompt": "p", "latent": "prior"}
line |= {"response": "a\\u2028b", "num_tokens": 1, "is_cut": False}
Path(job["output"]).write_text(json.dumps(line, ensure_ascii=False) + "\\n")
"""


@pytest.fixture
def run(tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains a step with a process that fails or not, and gives what was shown, and the job."""
    shown: list[Any] = []
    monkeypatch.setattr(Watch, "message", lambda self, text: shown.append(text))
    monkeypatch.setattr(Watch, "generations", lambda self, *arguments: shown.append(arguments))
    monkeypatch.setattr(example_generations, "_GENERATOR", "stand_in")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def run(*flags: str, fails: bool = False) -> tuple[list[Any], dict[str, Any]]:
        (tmp_path / "stand_in.py").write_text(STAND_IN.replace("FAILS", str(fails)))
        save = str(tmp_path / "run")
        train(["--config", tiny_run.config, "--train-iters", "1", "--save", save, *GENERATE, *flags])
        return shown, json.loads((tmp_path / "run" / "generations" / "iter_0000001.job").read_text())

    return run


def test_a_job_and_its_result(run: Any) -> None:
    shown, job = run("--eval-generation-tokens", "42")
    assert Path(job["checkpoint"]).name == "iter_0000001"
    assert (job["max_tokens"], job["on_gpu"]) == (42, False)
    assert len(job["usage"]) == 6
    assert sum(job["usage"]) == pytest.approx(1)
    assert {name: len(prompts) for name, prompts in job["prompts"].items()} == {"agree": 2, "disagree": 2}
    prompts = [tuple(prompt) for of_set in job["prompts"].values() for prompt in of_set]
    assert len(set(prompts)) == 4, "different prompts"
    assert max(map(len, prompts)) <= 64 - 42, "they leave room for a response"
    assert job["environment"]["RANK"] is None, "it joins no processes"
    (generations,) = [each for each in shown if isinstance(each, tuple)]
    assert generations[:2] == (1, "agree")
    assert [each.response for each in generations[2]] == ["a\u2028b"]


def test_a_run_goes_on_without_examples(run: Any) -> None:
    shown, _ = run(fails=True)
    assert "warning: no responses were generated at step 1: --load x: no room" in shown


def test_a_complete_run_that_is_resumed_elsewhere(run: Any, tiny_run: Any, tmp_path: Path) -> None:
    """No step is left, so none of its checkpoints is in the new folder."""
    shown, _ = run()
    shown.clear()
    flags = ["--load", str(tmp_path / "run"), "--save", str(tmp_path / "new"), *GENERATE]
    train(["--config", tiny_run.config, "--train-iters", "1", *flags])
    assert any("no responses were generated at step 1" in each for each in shown)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--eval-generation-tokens", "63"],
            "every prompt of --valid-data agree has more than the other 1 of --max-position-embeddings",
        ),
        (["--norm-position", "both"], "no Hugging Face family has this model"),
    ],
)
def test_what_cannot_be_generated_is_refused_at_the_start(
    tiny_run: Any, tmp_path: Path, flags: list[str], message: str
) -> None:
    save = str(tmp_path / "run")
    config = parse_args(["--config", tiny_run.config, "--train-iters", "1", "--save", save, *GENERATE, *flags])
    context = start_distributed(config)
    try:
        with pytest.raises(ConfigError, match=message):
            check_generations(assemble_run(context))
    finally:
        stop_distributed()
