"""The benchmark of training on a data set of a few pairs: that it measures, not what."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launch import run

from benchmarks.training import measure
from benchmarks.training.__main__ import _first_rows, main
from benchmarks.training.providers import DEFAULT_PROVIDERS, counterpart, measurements
from benchmarks.training.report import table
from benchmarks.training.workload import Workload
from megatron_lpc.command_line import UserError
from megatron_lpc.config import validate


@pytest.mark.slow
@pytest.mark.distributed
def test_this_project_and_trl_side_by_side(tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(measure.ROOT)
    flags = ["--data", tiny_run.train_data, "--output", str(tmp_path), "--vocab-size", "320"]
    flags += ["--steps", "1", "--rounds", "1", "--num-layers", "2", "--max-length", "128"]
    flags += ["--global-batch-size", "4", "--micro-batch-size", "2", "--pack-to", "512"]
    providers = ("trl", "trl-padding-free", "shared-packed", "shared-packed-lpc")
    run([sys.executable, "-m", "benchmarks.training", *flags, "--providers", *providers])
    results = json.loads((tmp_path / "results.json").read_text())
    assert "padding_free" in results["trl-padding-free"][0]["skipped"]
    (turns,) = results.pop("shared-packed-lpc/plain")
    seconds = {provider: sum(rounds[0]["seconds"]) for provider, rounds in results.items() if "seconds" in rounds[0]}
    assert list(seconds) == ["trl", "shared-packed", "shared-packed-lpc"]
    assert all(rounds[0]["peak_gb"] > 0 for provider, rounds in results.items() if provider in seconds)
    text = (tmp_path / "table.md").read_text()
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    trl, padding_free, plain, lpc = [dict(zip(head, row, strict=True)) for row in rows]
    assert "padding_free" in padding_free["note"]
    assert trl["speed / TRL"] == trl["memory / TRL"] == "1.00"
    assert plain["pairs/s"] == f"{4 / seconds['shared-packed']:.2f}"
    assert lpc["speed / TRL"] == f"{seconds['trl'] / seconds['shared-packed-lpc']:.2f}"
    assert lpc["speed / plain"] == f"{turns['plain'][0] / turns['seconds'][0]:.3f}"
    assert plain["speed / plain"] == ""
    assert f"python -m benchmarks.training --data {Path(tiny_run.train_data).name} --device cpu --shape small" in text
    assert f"--num-layers 2 --providers {' '.join(providers)}`" in text


def test_a_frozen_backbone_beside_full_training() -> None:
    """Ratios to LPC with all weights, and the time that the cache took in the first round."""
    data = SimpleNamespace(lengths=np.array([[5, 3, 4]] * 4))
    work = SimpleNamespace(example_indices=lambda: [0, 1, 2, 3], dataset=lambda: data, global_batch_size=2)
    results = {
        name: [{"seconds": [seconds], "peak_gb": 1.0, "build_seconds": build} for build in (9.0, 1.0)]
        for name, seconds in (("separate-lpc", 6.0), ("separate-lpc-frozen", 2.0), ("separate-lpc-cached", 0.5))
    }
    full, frozen, cached = table(work, results)
    assert "speed / LPC" not in full
    assert (frozen["speed / LPC"], cached["speed / LPC"]) == (3.0, 12.0)
    assert cached["note"] == "9 s to build and fill the cache once"
    assert "note" not in frozen


def _small_workload() -> Workload:
    names = ("data", "tokenizer", "cache", "device", "shape")
    sizes = {"num_layers": 2, "steps": 1, "global_batch_size": 4, "micro_batch_size": 2, "pack_to": 8, "max_length": 8}
    return Workload(**dict(zip(names, ("d", "t", "c", "cpu", "smollm2-135m"), strict=True)), **sizes, liger=False)


def test_options_of_a_frozen_backbone() -> None:
    work = _small_workload()
    for provider, frozen, cache in (
        ("separate-lpc", False, None),
        ("separate-lpc-frozen", True, None),
        ("separate-lpc-cached", True, "c/hidden-states"),
    ):
        config = work.config(provider)
        validate(config, 1, "cpu")
        assert config.latent.latent_mode == "lpc"
        assert (config.training.freeze_backbone, config.training.cache_hidden_states) == (frozen, cache)
    assert work.config("separate").latent.latent_mode == "none"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_first_pairs(tmp_path: Path, suffix: str) -> None:
    data = tmp_path / f"data{suffix}"
    text = "".join(f'{{"number": {number}}}\n' for number in range(5))
    data.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert _first_rows(data, 2, tmp_path).read_text() == text[: len(text) // 5 * 2]
    with pytest.raises(UserError, match=r"takes the first lines of a \.jsonl or \.jsonl\.gz file"):
        _first_rows(tmp_path / "data.parquet", 2, tmp_path)


def test_what_does_not_fit_gets_a_note_and_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure, "measure_trl", too_large)
    trl = measure.measure(None, "trl")
    rounds = [{"seconds": [2.0], "peak_gb": 3.0}]
    data = SimpleNamespace(lengths=np.array([[5, 3, 4]] * 4))
    work = SimpleNamespace(example_indices=lambda: [0, 1, 2, 3], dataset=lambda: data, global_batch_size=2)
    trl_line, ours = table(work, {"trl": [trl], "packed": rounds})
    assert trl_line == {"provider": "TRL DPOTrainer", "note": "does not fit into the GPU's memory"}
    assert ours["pairs/s"] == 1.0
    assert not {"speed / TRL", "memory / TRL"} & ours.keys()


def test_lpc_alternates_with_what_it_is_compared_with() -> None:
    assert measurements(["separate", "separate-lpc"]) == ["separate", "separate-lpc", "separate-lpc/plain"]
    assert measurements(["separate-lpc", "packed"]) == ["separate-lpc", "packed"]
    exact = "shared-packed-lpc-exact-8"
    assert measurements([exact]) == [exact, f"{exact}/plain"]
    assert counterpart(exact) == "shared-packed-lpc-amortized-8"
    assert exact not in DEFAULT_PROVIDERS


def test_exact_inference_has_as_many_codes_as_what_it_is_compared_with() -> None:
    work = _small_workload()
    exact = work.config("shared-packed-lpc-exact-8")
    amortized = work.config(counterpart("shared-packed-lpc-exact-8"))
    assert (exact.latent.latent_inference, amortized.latent.latent_inference) == ("exact", "amortized")
    validate(exact, 1, "cpu")
    assert exact.latent.codebook_size == amortized.latent.codebook_size == 8
    assert replace(exact, latent=amortized.latent) == amortized


def test_a_measurement_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "asdict", lambda work: {"unknown": work})
    with pytest.raises(measure.MeasurementFailed, match=r"packed failed:\n(.|\n)*unexpected keyword argument"):
        measure.measure_in_process(None, "packed")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--liger"], "--liger needs --device cuda"),
        (["--num-layers", "0"], "--num-layers must be at least 1"),
        (["--pairs", "0"], "--pairs must be at least 1"),
        (["--providers", "other"], "invalid choice: 'other'"),
    ],
)
def test_refuses_what_would_not_be_honoured(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--data", "pairs.jsonl", "--output", "results", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
