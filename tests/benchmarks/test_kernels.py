import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*arguments):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.kernels",
            *arguments,
            "--device",
            "cpu",
            "--dtype",
            "fp32",
            "--rounds",
            "2",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.kernels import measure, pair_case, pair_providers

    return measure, pair_case, pair_providers


def a_case(pair_case, direction="training"):
    size = {"model": "16x40", "rows": 24, "response": 4, "masked": 0.25, "latents": 2, "tp": 2, "chunk_size": 16}
    return pair_case.PairCase(device="cpu", dtype=torch.float32, direction=direction, **size)


def test_providers_are_measured_side_by_side(tmp_path):
    providers = ("pytorch", "pairwise", "liger_dpo")
    sizes = ("--model", "16x16384", "--rows", "512", "--response", "32", "--chunk-size", "64", "--masked", "0.5")
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


def test_gumbel_mix(tmp_path):
    sizes = ("--pairs", "3", "--codes", "4", "8", "--width", "16", "--clock", "cpu")
    result = run("gumbel_mix", *sizes, "--providers", "pytorch", "ours", "--output", str(tmp_path / "mix"))
    assert result.returncode == 0, result.stderr
    with (tmp_path / "mix.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["K"] for line in lines] == ["4", "4", "8", "8"]
    assert float(lines[0]["GB/s"]) > 0
    assert "--clock cpu" in lines[0]["command"]
    assert lines[1]["note"] == "gumbel_mix on CPU is the chain of PyTorch operations"


@pytest.mark.parametrize("direction", ["training", "scoring"])
def test_all_providers_do_the_same_job(parts, direction):
    _, pair_case, pair_providers = parts
    case = a_case(pair_case, direction)
    names = ["pytorch", "recompute", "pairwise", "frozen"]
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        names.append("linear_cross_entropy")
    expected, *losses = (float(pair_providers.PROVIDERS[name](case)()) for name in names)
    assert losses == pytest.approx([expected] * len(losses), rel=1e-5)


def test_another_loss_and_a_failure_are_told(parts, monkeypatch):
    measure, pair_case, pair_providers = parts
    case = a_case(pair_case)
    right = pair_providers.PROVIDERS["pytorch"]

    def wrong(case):
        step = right(case)
        return lambda: 2 * step()

    def broken(case):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(measure, "extra_memory", lambda case, name, step: 0)
    for name, provider in (("recompute", wrong), ("pairwise", broken)):
        monkeypatch.setitem(pair_providers.PROVIDERS, name, provider)
    good, other, failed = measure.measure(case, ["pytorch", "recompute", "pairwise"], 1)
    assert len(good.times) == 1
    assert other.note.startswith("its loss is ")
    assert not other.times
    assert failed.note == "RuntimeError: no such kernel"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "llama-9"), "--model must be one of llama-3-8b"),
        (("--model", "0x9"), "--model must be one of"),
        (("--rows", "100"), "100 rows are not a whole number of pairs of 256 rows a response"),
        (("--masked", "1"), "--masked must be in [0, 1), got 1.0"),
        (("--latents", "0"), "--latents and --tp must be at least 1, got 0 and 1"),
    ],
)
def test_sizes_that_do_not_fit(parts, capsys, arguments, message):
    import benchmarks.kernels.__main__ as benchmark_kernels

    assert benchmark_kernels.main(["pair_logps", "--device", "cpu", *arguments]) == 1
    assert capsys.readouterr().err.startswith("benchmark_kernels: " + message)


def test_numbers_below_one(parts, capsys):
    import benchmarks.kernels.__main__ as benchmark_kernels

    with pytest.raises(SystemExit):
        benchmark_kernels.main(["pair_logps", "--rounds", "0", "--device", "cpu"])
    assert "--rounds and --threads must be at least 1, got 0 and None" in capsys.readouterr().err
    assert benchmark_kernels.main(["gumbel_mix", "--codes", "0", "--device", "cpu"]) == 1
    assert "--pairs, --codes and --width must be at least 1, got 16, 0 and 4096" in capsys.readouterr().err


def test_the_clock_of_our_threads_does_not_count_waiting(parts):
    measure, _, _ = parts
    assert (
        measure.seconds(lambda: time.sleep(0.2), "cpu", "cpu")
        < 0.1
        < measure.seconds(lambda: time.sleep(0.2), "cpu", "wall")
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_no_cuda(parts, capsys):
    import benchmarks.kernels.__main__ as benchmark_kernels

    with pytest.raises(SystemExit):
        benchmark_kernels.main(["pair_logps", "--device", "cuda"])
    assert "--device cuda: PyTorch finds no CUDA device" in capsys.readouterr().err


def test_clock_of_the_cpu_is_not_for_a_gpu(parts, monkeypatch, capsys):
    import benchmarks.kernels.__main__ as benchmark_kernels

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit):
        benchmark_kernels.parse(["pair_logps", "--device", "cuda", "--clock", "cpu"])
    assert "--clock cpu does not see what a GPU takes" in capsys.readouterr().err
