"""Runs whose posterior reads other pairs of the same annotator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_lpc.config import Config, ConfigError, LatentConfig, parse_args
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.train import train
from megatron_lpc.training.episodes import open_episodes
from megatron_lpc.training.metrics_file import read_metrics

FLAGS = (
    "--posterior-context 1 --latent-inference amortized --swap-guidance-weight 0.1 --group-column annotator "
    "--train-iters 4 --save-interval 2"
)
CLOCK = ("tokens_per_sec", "mfu", "step_seconds")


class _Groups(PairDataset):
    """A data set of which only the groups are known."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.names = list(counts)
        self.numbers = np.repeat(np.arange(len(counts)), list(counts.values())).astype(np.int32)

    def group_numbers(self) -> tuple[np.ndarray, list[str]]:
        return self.numbers, self.names

    def prompt_checksums(self) -> np.ndarray:
        return np.arange(len(self.numbers), dtype=np.uint32)


def _config(context: int) -> Config:
    return Config(latent=LatentConfig(posterior_context=context))


def test_what_is_left_out_is_said() -> None:
    index, notes = open_episodes(_config(2), _Groups({"ada": 7, "ben": 6, "cleo": 2}))
    assert index.pairs_per_epoch == 12
    assert notes == [
        "--posterior-context 2: 3 of 15 pairs are in no episode of 3 pairs of their group in an epoch.",
        "Groups of fewer than 3 pairs, never trained on: cleo.",
    ]
    _, notes = open_episodes(_config(2), _Groups({"ada": 6, "ben": 3}))
    assert notes == []


def test_groups_that_are_all_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match="--posterior-context 3: no group has the 4 pairs of an episode; the largest"):
        open_episodes(_config(3), _Groups({"ada": 3, "ben": 2}))


def test_cached_hidden_states_give_the_same_episodes(tiny_run, tmp_path: Path) -> None:
    def losses(name: str, *flags: str) -> list[float]:
        save = tmp_path / name
        given = [*FLAGS.split(), "--freeze-backbone", "--latent-lr", "0.01", "--save", str(save), *flags]
        train(parse_args(["--config", tiny_run.config, *given]))
        return [line["loss"] for line in read_metrics(save / "metrics.jsonl") if "evaluation" not in line]

    cached = losses("cached", "--cache-hidden-states", str(tmp_path / "hidden"))
    assert cached == pytest.approx(losses("online"), rel=1e-6)


def test_a_run_resumes_exactly_and_is_evaluated_by_products(tiny_run, tmp_path: Path) -> None:
    def lines(save: Path, *flags: str) -> list[dict]:
        train(parse_args(["--config", tiny_run.config, *FLAGS.split(), "--save", str(save), *flags]))
        return [
            {name: value for name, value in line.items() if name not in CLOCK}
            for line in read_metrics(save / "metrics.jsonl")
        ]

    straight = lines(tmp_path / "straight")
    swap = [line["lpc/swap_divergence"] for line in straight if "evaluation" not in line]
    # The posterior starts flat.
    assert swap[0] == 0
    assert min(swap[1:]) > 0
    resumed = lines(tmp_path / "resumed", "--load", str(tmp_path / "straight" / "iter_0000002"))
    assert resumed == [line for line in straight if line["iteration"] > 2]

    from megatron_lpc.evaluate import main

    report = tmp_path / "report.json"
    # Fewer pairs per micro-batch than an episode has: an evaluation goes pair by pair.
    settings = ["--config", str(tmp_path / "straight" / "config.yaml"), "--output", str(report)]
    main([*settings, "--micro-batch-size", "1", "--support-pairs", "2"])
    assert json.loads(report.read_text())["data"]["disagree"]["support"]["query_pairs"] > 0
