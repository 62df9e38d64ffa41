"""Whole runs with shared prompts and packed sequences: the numbers of separate sequences, for less work."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch import torchrun

from megatron_lpc.training.metrics_file import read_metrics

pytestmark = pytest.mark.distributed
# 4 is its default: nothing else is honoured with --pack-to.
WITH_PACKED = ("--micro-batch-size", "4")
PACKED = ("--share-prompt", "--pack-to", "192", *WITH_PACKED)


def _lines(tiny_run, save: Path, processes: int, *flags: str) -> list[dict]:
    command = (
        "-m",
        "megatron_lpc.train",
        "--config",
        tiny_run.config,
        "--save",
        str(save),
        "--train-iters",
        "6",
        "--eval-interval",
        "3",
        "--latent-lr",  # So narrow a head would learn so fast that Adam turns rounding into other digits.
        "1e-3",
    )
    torchrun(processes, *command, *flags)
    return read_metrics(save / "metrics.jsonl")


@pytest.fixture(scope="module")
def separate_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("separate")


@pytest.fixture(scope="module")
def separate(tiny_run, separate_run: Path) -> list[dict]:
    return _lines(tiny_run, separate_run, 1)


def _assert_equal(separate: list[dict], packed: list[dict]) -> None:
    names = (
        "loss",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "lpc/kl",
        "lpc/entropy_q",
    )  # `lpc/agreement` is in test_layouts: codes start equally probable here, and rounding decides which comes first.
    assert len(separate) == len(packed) == 6 + 2 * 2 * 2
    for one, other in zip(separate, packed, strict=True):
        assert (one["iteration"], one.get("evaluation")) == (other["iteration"], other.get("evaluation"))
        for name in names:
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=2e-5), f"{name} at {one['iteration']}"


def test_data_parallel_packed_shared_run_with_a_cache_of_separate_sequences(tiny_run, separate, tmp_path: Path) -> None:
    """Ranks hold different numbers of pairs; reference log-probs are found by pair, not by place."""
    cache = ("--reference", "precomputed", "--reference-cache", str(tmp_path / "cache"))
    torchrun(1, "-m", "megatron_lpc.precompute_reference", "--config", tiny_run.config, *cache)
    _assert_equal(separate, _lines(tiny_run, tmp_path / "run", 2, *PACKED, *cache))


def test_a_cache_written_from_packed_sequences_and_a_pipeline(tiny_run, separate, tmp_path: Path) -> None:
    cache = ("--reference", "precomputed", "--reference-cache", str(tmp_path / "cache"))
    torchrun(2, "-m", "megatron_lpc.precompute_reference", "--config", tiny_run.config, *cache, *PACKED)
    _assert_equal(
        separate, _lines(tiny_run, tmp_path / "run", 2, "--pipeline-model-parallel-size", "2", "--share-prompt", *cache)
    )


def test_episodes_are_the_same_packed_over_two_ranks(tiny_run, tmp_path: Path) -> None:
    """The posterior of a pair reads another pair of its annotator, which has to be the same one."""
    flags = "--group-column annotator --posterior-context 1 --latent-inference amortized --swap-guidance-weight 0.5"
    episodes = flags.split()
    one = _lines(tiny_run, tmp_path / "one", 1, *episodes)
    packed = _lines(tiny_run, tmp_path / "packed", 2, "--share-prompt", "--pack-to", "256", *WITH_PACKED, *episodes)
    _assert_equal(one, packed)
    swap = [[line["lpc/swap_divergence"] for line in lines if "evaluation" not in line] for lines in (one, packed)]
    assert swap[1] == pytest.approx(swap[0], rel=1e-5)


def test_a_pair_that_does_not_fit_is_refused(tiny_run, tmp_path: Path) -> None:
    command = ("-m", "megatron_lpc.train", "--config", tiny_run.config, "--pack-to", "20", "--micro-batch-size", "4")
    done = torchrun(1, *command, check=False)
    assert done.returncode != 0
    assert "--pack-to 20: pair " in done.stderr
    assert "tokens with both responses; raise it to that, or lower --max-length" in done.stderr


def test_a_streamed_run_resumes_exactly(tiny_run, tmp_path: Path) -> None:
    """Two data parallel ranks, each with its share of the pairs, packed; resumed in the middle of a shuffled block."""
    flags = (*PACKED, "--streaming", "--shuffle-buffer-size", "7")
    straight = _lines(tiny_run, tmp_path / "straight", 2, *flags, "--save-interval", "2")
    half = tmp_path / "straight" / "iter_0000002"
    resumed = _lines(tiny_run, tmp_path / "resumed", 2, *flags, "--load", str(half))
    clock = ("tokens_per_sec", "mfu", "step_seconds")
    expected, found = (
        [{k: v for k, v in line.items() if k not in clock} for line in lines if line["iteration"] > 2]
        for lines in (straight, resumed)
    )
    assert found == expected
    command = (
        "-m",
        "megatron_lpc.train",
        "--config",
        tiny_run.config,
        *flags,
        "--train-iters",
        "6",
        "--load",
        str(half),
    )
    done = torchrun(1, *command, check=False)
    assert (
        "the checkpoint is of 2 data parallel ranks, each with its share of the data, and this run has 1" in done.stderr
    )
