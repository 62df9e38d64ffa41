"""Where a run takes its weights from: none is drawn that a checkpoint gives, and none is left unset.

Under `--deterministic` torch fills new memory with NaN, so a weight that nobody set would make the loss NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_lpc.config import parse_args
from megatron_lpc.training.metrics_file import read_metrics

LAYERS = 2
LN2 = 0.693147
LIKE_REFERENCE = ("--codebook-init-std", "0", "--kl-weight", "0")
"""The first loss is ln 2 where policy and reference have the same weights."""
PLAIN = ("--loss-type", "sft", "--latent-mode", "none", "--codebook-size", "64")


@pytest.fixture(scope="module", autouse=True)
def other_algorithms_later() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the matrices that were drawn."""
    from megatron_lpc.platform import select_platform

    select_platform("cpu")
    from megatron_lpc.model import initialize

    names: list[str] = []
    draw = initialize._draw

    def spy(tensor, *arguments):
        names.append(tensor.key)
        return draw(tensor, *arguments)

    monkeypatch.setattr(initialize, "_draw", spy)
    return names


def train_two_steps(tiny_run, save: Path, *flags: str) -> list[float]:
    from megatron_lpc.train import train

    common = ("--config", tiny_run.config, "--deterministic", "--save", str(save), "--eval-iters", "1")
    train(parse_args([*common, "--train-iters", "2", *flags]))
    losses = [line["loss"] for line in read_metrics(save / "metrics.jsonl") if "evaluation" not in line]
    assert all(map(math.isfinite, losses)), "a weight was left unset"
    return losses


def test_weights_are_drawn_once_or_not_at_all(tiny_run, drawn: list[str], tmp_path: Path) -> None:
    bias = ("--add-qkv-bias", "--qk-layernorm")
    train_two_steps(tiny_run, tmp_path / "sft", *PLAIN, *bias)
    assert {name.split(".")[0] for name in drawn} == {"embedding", "decoder"}
    assert len(drawn) == 1 + LAYERS * 5, "the gate and the up projection are drawn one by one"

    drawn.clear()
    start = ("--pretrained-checkpoint", str(tmp_path / "sft"), *bias)
    losses = train_two_steps(tiny_run, tmp_path / "dpo", *start, *LIKE_REFERENCE)
    assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert len(drawn) == 5
    assert all(name.startswith("latent_head.") for name in drawn), "the checkpoint lacks them"

    drawn.clear()
    resumed = train_two_steps(
        tiny_run, tmp_path / "dpo", *start, *LIKE_REFERENCE, "--load", "auto", "--train-iters", "4"
    )
    assert len(resumed) == 4
    assert drawn == []


def test_fresh_policy_and_its_reference_are_drawn_once(tiny_run, drawn: list[str], tmp_path: Path) -> None:
    losses = train_two_steps(tiny_run, tmp_path, *LIKE_REFERENCE, "--num-experts", "4", "--moe-router-topk", "2")
    assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert "decoder.layers.mlp.router.weight" in drawn
    experts = [name for name in drawn if ".experts." in name]
    assert len(experts) == LAYERS * 4 * 3
    assert len(drawn) == 1 + LAYERS * 3 + len(experts) + 5
