"""The benchmark of the kernels on a few tokens: that it measures, not what."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kernels import measure
from benchmarks.kernels.__main__ import main
from benchmarks.kernels.clock import seconds
from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.pair_providers import PROVIDERS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    fixed = ("--device", "cpu", "--dtype", "fp32", "--rounds", "2")
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", *arguments, *fixed],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def small_case(direction: str = "training") -> PairCase:
    size = {"model": "16x40", "tokens": 24, "response": 4, "masked": 0.25, "latents": 2, "tp": 2, "chunk_size": 16}
    return PairCase(device="cpu", dtype=torch.float32, direction=direction, **size)


def test_providers_are_measured_side_by_side(tmp_path: Path) -> None:
    providers = ("pytorch", "pairwise", "liger_dpo")
    sizes = ("--model", "16x16384", "--tokens", "512", "--response", "32", "--chunk-size", "64", "--masked", "0.5")
    result = run("pair_logps", *sizes, "--providers", *providers, "--output", str(tmp_path / "out" / "pair"))
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out" / "pair.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["masked"], line["provider"]) for line in lines] == [("0.5", name) for name in providers]
    for line in lines:
        assert line["command"].startswith("python -m benchmarks.kernels pair_logps --model 16x16384")
        assert line["torch"] == torch.__version__
        assert line["commit"]
        if line["provider"] == "liger_dpo" and line["note"]:
            assert line["note"].startswith("Liger-Kernel: ")
            continue
        assert 0 < float(line["ms p20"]) <= float(line["ms"]) <= float(line["ms p80"])
        # The logits alone are 32 MiB; a chunk of ours is 4, and the gradient of the head 1.
        assert int(line["extra MiB"]) >= 60 if line["provider"] == "pytorch" else int(line["extra MiB"]) < 30
    text = (tmp_path / "out" / "pair.md").read_text()
    assert "- device: `" in text
    assert text.count("| pairwise |") == 1
    assert (tmp_path / "out" / "pair.png").read_bytes().startswith(b"\x89PNG")


def test_gumbel_mix(tmp_path: Path) -> None:
    sizes = ("--pairs", "3", "--codes", "4", "8", "--hidden-size", "16", "--clock", "cpu")
    result = run("gumbel_mix", *sizes, "--providers", "pytorch", "ours", "--output", str(tmp_path / "mix"))
    assert result.returncode == 0, result.stderr
    with (tmp_path / "mix.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["K"] for line in lines] == ["4", "4", "8", "8"]
    assert float(lines[0]["GB/s"]) > 0
    assert "--clock cpu" in lines[0]["command"]
    assert lines[1]["note"] == "gumbel_mix on CPU is the chain of PyTorch operations"


@pytest.mark.parametrize("change", [{}, {"trained": "z"}, {"shared": True, "latents": 9}])
@pytest.mark.parametrize("direction", ["training", "scoring"])
def test_all_providers_do_the_same_job(direction: str, change: dict[str, Any]) -> None:
    case = replace(small_case(direction), **change)
    names = ["pytorch", "recompute", "pairwise", "frozen"]
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        names.append("linear_cross_entropy")
    expected, *losses = (float(PROVIDERS[name](case)()) for name in names)
    assert losses == pytest.approx([expected] * len(losses), rel=1e-5)


def test_another_loss_and_a_failure_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PROVIDERS["pytorch"]

    def wrong(case: PairCase) -> Callable[[], torch.Tensor]:
        step = right(case)
        return lambda: 2 * step()

    def broken(case: PairCase) -> Callable[[], torch.Tensor]:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(measure, "extra_memory", lambda case, name, step: 0)
    for name, provider in (("recompute", wrong), ("pairwise", broken)):
        monkeypatch.setitem(PROVIDERS, name, provider)
    good, other, failed = measure.measure(small_case(), ["pytorch", "recompute", "pairwise"], 1)
    assert len(good.times) == 1
    assert other.note.startswith("its loss is ")
    assert not other.times
    assert failed.note == "RuntimeError: no such kernel"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pair_logps", "--model", "llama-9"), "--model must be one of llama-3-8b"),
        (("pair_logps", "--model", "0x9"), "--model must be one of"),
        (("pair_logps", "--tokens", "100"), "--tokens 100 is not a whole number of pairs with 256 tokens per response"),
        (("pair_logps", "--masked", "1"), "--masked must be in [0, 1), got 1.0"),
        (("pair_logps", "--latents", "0"), "--latents and --tp must be at least 1, got 0 and 1"),
        (("pair_logps", "--rounds", "0"), "--rounds and --threads must be at least 1, got 0 and None"),
        (("gumbel_mix", "--codes", "0"), "--pairs, --codes and --hidden-size must be at least 1, got 16, 0 and 4096"),
    ],
)
def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--device", "cpu"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: " + message)


def test_the_clock_of_our_threads_does_not_count_waiting() -> None:
    def wait() -> None:
        time.sleep(0.2)

    assert seconds(wait, "cpu", "cpu") < 0.1 < seconds(wait, "cpu", "wall")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_no_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pair_logps", "--device", "cuda"])
    assert "--device cuda: PyTorch finds no CUDA device" in capsys.readouterr().err


def test_clock_of_the_cpu_is_not_for_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit):
        main(["pair_logps", "--device", "cuda", "--clock", "cpu"])
    assert "--clock cpu does not see what a GPU takes" in capsys.readouterr().err
