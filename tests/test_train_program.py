"""The training program on its real command line: what it leaves behind, how it stops, how it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launch import ENVIRONMENT, run, torchrun, torchrun_command

from megatron_lpc.training.metrics_file import read_metrics

pytestmark = pytest.mark.distributed
STEPS = 40
FLAGS = ("--train-iters", str(STEPS), "--save-interval", "10", "--eval-interval", "20")
TP2 = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
PROMISED = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "lpc/kl",
    "lpc/perplexity",
    "lpc/active_codes",
    "lpc/agreement",
    "grad_norm",
    "lr",
    "tokens_per_sec",
    "mfu",
}
CLOCK = {"tokens_per_sec", "mfu", "step_seconds"}
"""Metrics that differ from run to run."""


def _metrics(save: Path) -> list[dict[str, Any]]:
    """Lines of the metrics file without the clock's; evaluation lines too."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(save / "metrics.jsonl")]


def _train(tiny_run, save: Path, *flags: str) -> tuple[str, ...]:
    return "-m", "megatron_lpc.train", "--config", tiny_run.config, "--save", str(save), *FLAGS, *flags


@pytest.fixture(scope="module")
def undisturbed(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("undisturbed")
    torchrun(2, *_train(tiny_run, save, *TP2))
    return save


def test_metrics_and_evaluations(undisturbed: Path) -> None:
    lines = read_metrics(undisturbed / "metrics.jsonl")
    steps = [line for line in lines if "evaluation" not in line]
    assert [line["iteration"] for line in steps] == list(range(1, STEPS + 1))
    for line in steps:
        assert line.keys() >= PROMISED
        assert line["skipped"] == 0
    assert steps[-1]["rewards/margins"] > 0.1 > abs(steps[0]["rewards/margins"]), "it learns"
    evaluations = [line for line in lines if "evaluation" in line]
    names = ["agree/prior", "agree/posterior", "disagree/prior", "disagree/posterior"]
    assert [(line["iteration"], line["evaluation"]) for line in evaluations] == [
        (at, name) for at in (20, STEPS) for name in names
    ]
    for line in evaluations:
        assert line.keys() >= PROMISED - {"grad_norm", "lr", "tokens_per_sec", "mfu"}
    assert (undisturbed / "config.yaml").exists()
    assert (undisturbed / "latest_checkpointed_iteration.txt").read_text().strip() == str(STEPS)


def test_goes_on_exactly_after_sigterm_and_after_kill_9(tiny_run, undisturbed: Path, tmp_path: Path) -> None:
    """Three processes of one run: the first is asked to stop, the second is killed, the third ends it."""
    command = torchrun_command(2, *_train(tiny_run, tmp_path, *TP2, "--load", "auto"))

    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as first:
        _wait_for(first, lambda: _steps_done(tmp_path) >= 3)
        for worker in _children(first.pid):
            os.kill(worker, signal.SIGTERM)
        assert first.wait(60) == 0, first.stderr.read()
    stopped = _steps_done(tmp_path)
    assert 3 <= stopped < 20, "it stopped at once"
    assert _latest_checkpoint(tmp_path) == stopped

    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as second:
        _wait_for(
            second,
            lambda: _latest_checkpoint(tmp_path) > stopped and _steps_done(tmp_path) > _latest_checkpoint(tmp_path),
        )
        for victim in [*_children(second.pid), second.pid]:
            os.kill(victim, signal.SIGKILL)
        second.wait(60)
    newest = _latest_checkpoint(tmp_path)
    assert stopped < newest < STEPS, "it was killed after a checkpoint and before its end"
    assert newest <= STEPS - 5, "there are five losses to compare"

    done = torchrun(2, *_train(tiny_run, tmp_path, *TP2, "--load", "auto"))
    assert f"step {newest + 1}/{STEPS}" in done.stdout
    assert f"step {newest}/{STEPS}" not in done.stdout
    assert _metrics(tmp_path) == _metrics(undisturbed), "to the last bit"


def test_goes_on_in_another_layout(tiny_run, undisturbed: Path, tmp_path: Path) -> None:
    run([sys.executable, *_train(tiny_run, tmp_path, "--load", str(undisturbed / "iter_0000020"))])
    expected = [line for line in _metrics(undisturbed) if line["iteration"] > 20]
    for line, before in zip(_metrics(tmp_path), expected, strict=True):
        assert (line["iteration"], line.get("evaluation")) == (before["iteration"], before.get("evaluation"))
        assert line["loss"] == pytest.approx(before["loss"], abs=1e-5)
        if "evaluation" not in line:
            assert line["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-3)


def test_exits_early_with_a_profile_and_a_log_of_each_rank(tiny_run, undisturbed: Path, tmp_path: Path) -> None:
    """With deterministic algorithms, which change nothing on a CPU."""
    flags = ["--exit-interval", "3", "--deterministic", "--rank-log-dir", str(tmp_path / "logs")]
    flags += ["--profile", "--profile-step-start", "1", "--profile-step-end", "2", "--profile-ranks", "1"]
    torchrun(2, *_train(tiny_run, tmp_path, *TP2, *flags))
    assert _latest_checkpoint(tmp_path) == 3, "neither the end of the run nor of its save interval"
    assert _metrics(tmp_path) == _metrics(undisturbed)[:3], "and no evaluation"
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["rank_00001_steps_1_to_2.json"]
    for rank in range(2):
        log = (tmp_path / "logs" / f"rank_{rank:05d}.log").read_text()
        assert re.findall(r"step (\d) done: loss", log) == ["1", "2", "3"]


def test_steps_that_are_not_finite(tiny_run, tmp_path: Path) -> None:
    worker = str(Path(__file__).parent / "distributed" / "diverging_worker.py")
    bad = ("2:gradient", "5:loss", "6:gradient", "7:loss")
    flags = ("--config", tiny_run.config, "--save", str(tmp_path), "--max-bad-steps", "2", "--train-iters", "20")
    done = run([sys.executable, worker, *bad, *flags], check=False)
    saved = tmp_path / "bad_batch_7.json"
    message = (
        "the loss or a gradient was not finite for 3 steps in a row, the last is step 7; "
        f"the pairs it read are in {saved}"
    )
    assert f"error: {message}\n" in done.stderr, done.stderr
    assert done.returncode == 1
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["skipped"] for line in lines] == [0, 1, 0, 0, 1, 1, 1]
    assert [line["loss"] == line["loss"] for line in lines] == [True, True, True, True, False, True, False], (
        "NaN is no number"
    )
    assert [line["grad_norm"] == line["grad_norm"] for line in lines] == [True, False, True, True, False, False, False]
    assert "Traceback" not in done.stderr
    batch = json.loads(saved.read_text())
    assert batch["samples"] == list(range(48, 56)), "the seventh batch of eight; the second pass over 48 pairs"
    assert len(set(batch["example_index"])) == 8
    assert set(batch["example_index"]) < set(range(48))


def test_mistakes_are_one_clear_line(tiny_run, tmp_path: Path) -> None:
    broken, chat, binary = tmp_path / "broken.jsonl", tmp_path / "chat.jsonl", tmp_path / "binary.parquet"
    good = Path(tiny_run.train_data).read_text().splitlines()[0]
    broken.write_text(good + '\n{"prompt": "p", "chosen": "c"}\n')
    turns = [[{"role": "assistant", "content": text}] for text in "ab"]
    chat.write_text(json.dumps({"prompt": "p", "chosen": turns[0], "rejected": turns[1]}) + "\n")
    binary.write_bytes(b"PAR?")
    mistakes = {
        ("--micro-batch-sise", "2"): r"unknown flag '--micro-batch-sise'; did you mean '--micro-batch-size'\?",
        ("--train-data", str(broken)): rf"{broken}:2: column `rejected` is missing .*",
        ("--train-data", "nowhere.jsonl"): r"nowhere.jsonl: no such data files\. .*",
        ("--train-data", str(binary)): rf"{binary}: cannot be read as Parquet .*",
        ("--train-data", str(chat)): r"the data holds chat messages but the tokenizer .* has no chat template.*",
        ("--tokenizer-model", "nowhere.model"): r"--tokenizer-model nowhere.model: no such file\. .*",
        ("--chat-template", "nowhere.jinja"): r"--chat-template nowhere.jinja: no such file\. .*",
        ("--device", "cuda"): r"--device cuda: torch sees no GPU; .*",
        (
            "--reference-offload",
        ): r"--reference-offload: a CPU run keeps the reference in host memory already; leave it out",
    }
    worker = Path(__file__).parent / "distributed" / "mistakes_worker.py"
    calls = [["--config", tiny_run.config, *flags] for flags in mistakes]
    done = run([sys.executable, str(worker), json.dumps(calls)], environment={"CUDA_VISIBLE_DEVICES": ""})
    for (flags, message), (code, error) in zip(mistakes.items(), json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert code == 2, f"{flags}: {error}"
        assert "Traceback" not in error
        assert re.fullmatch(message, "".join(re.findall(r"^error: (.*)$", error, re.MULTILINE))), f"{flags}: {error}"


def test_mistake_ends_the_process_with_2(tiny_run) -> None:
    command = [
        sys.executable,
        "-m",
        "megatron_lpc.train",
        "--config",
        tiny_run.config,
        "--tokenizer-model",
        "nowhere.model",
    ]
    done = run(command, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: --tokenizer-model nowhere.model: no such file. Train one with tools/train_tokenizer.py."
    )


def test_many_ranks_report_once(tiny_run, tmp_path: Path) -> None:
    """A mistake that one rank finds ends all of them, and is told once."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no JSON\n")
    done = torchrun(
        2, "-m", "megatron_lpc.train", "--config", tiny_run.config, *TP2, "--train-data", str(broken), check=False
    )
    assert done.returncode != 0
    assert len(re.findall(r"^error: ", done.stderr, re.MULTILINE)) == 1
    assert f"error: {broken}:1: not valid JSON" in done.stderr
    assert "megatron_lpc/train.py" not in done.stderr, "no stack trace of ours; torchrun adds its own"
    assert re.search(r"Root Cause.*exitcode *: 2 ", done.stderr, re.DOTALL)


def _wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.stderr.read() if process.stderr else ''}"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.002)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _steps_done(save: Path) -> int:
    path = save / "metrics.jsonl"
    return max((line["iteration"] for line in read_metrics(path)), default=0) if path.exists() else 0


def _latest_checkpoint(save: Path) -> int:
    path = save / "latest_checkpointed_iteration.txt"
    return int(path.read_text()) if path.exists() else 0
