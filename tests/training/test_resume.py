"""A run is not continued as another one: fewer steps, other data, another seed, another reference."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_lpc.config import Config, ConfigError, parse_args, with_options
from megatron_lpc.training.checkpoint_folder import write_description
from megatron_lpc.training.metrics_file import read_metrics
from megatron_lpc.training.resume import check_resumed, resumed_state
from megatron_lpc.training.setup import stop_distributed
from megatron_lpc.training.state import RunState

SAVED = with_options(Config(), train_data=["a.jsonl"], seed=5, pretrained_checkpoint="base", load="runs")


def _describe(folder: Path, run: dict[str, object], options: Config) -> None:
    counts = {"optimizer_updates": 5, "scheduler_steps": 160, "layout": {"world_size": 1}}
    write_description(folder, {"run": run, "options": asdict(options), **counts})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of `SAVED`, after 5 steps of 6."""
    _describe(tmp_path, asdict(_state()) | {"iteration": 5, "consumed_samples": 160}, SAVED)
    return tmp_path


def _state(train_iters: int = 6, data: str = "data a") -> RunState:
    return RunState(train_iters=train_iters, data=data)


@pytest.mark.parametrize(
    ("options", "start", "message"),
    [
        (
            {"train_iters": 4},
            _state(train_iters=4),
            "--train-iters 4: is fewer steps, and the checkpoint has done 5; raise it, or load an earlier checkpoint",
        ),
        ({"num_train_epochs": 0.5}, _state(train_iters=3), "--num-train-epochs 0.5: is 3 steps, and the checkpoint"),
        (
            {"train_data": ["b.jsonl"]},
            _state(data="data b"),
            r"other data (--train-data ['a.jsonl'], now ['b.jsonl']); resume with those, or set --override-resume data",
        ),
        ({}, _state(data="data b"), "(the files, the tokenizer or the program have changed)"),
        (
            {"seed": 7},
            _state(),
            "--seed 7: the checkpoint's run has 5, on which its data order and latent noise depend; "
            "set --seed 5, or --override-resume seed",
        ),
        (
            {"streaming": True, "train_iters": 6, "override_resume": ["data"]},
            _state(data="data b"),
            "--streaming: the checkpoint is of a run that did not stream its data; resume without it",
        ),
        (
            {"global_batch_size": 64},
            _state(),
            "--global-batch-size 32, now 64: the checkpoint's run has another batch; resume with that, or set "
            "--override-resume batch",
        ),
        ({"loss_type": "ipo", "beta": 0.2, "override_resume": ["batch"]}, _state(), "--loss-type dpo, now ipo; --beta"),
        ({"pretrained_checkpoint": None}, _state(), "--reference-load: is unset, and the reference of the"),
    ],
)
def test_another_run_is_refused(checkpoint: Path, options: dict[str, object], start: RunState, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        check_resumed(checkpoint, with_options(SAVED, **options), start)
    assert len(str(error.value).splitlines()) == 1
    assert str(checkpoint) in str(error.value)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, _state()),
        ({"seed": 7, "load_rng": False}, _state()),
        ({"override_resume": ["data"]}, _state(data="data b")),
        ({"pretrained_checkpoint": None, "reference_load": "base"}, _state()),
        ({"seed": 7, "override_resume": ["seed"]}, _state()),
        ({"global_batch_size": 64, "override_resume": ["batch"]}, _state()),
        ({"pretrained_checkpoint": None, "loss_type": "simpo", "override_resume": ["loss"]}, _state()),
        ({"lr": 1.0, "kl_weight": 0.5}, _state()),
    ],
)
def test_what_is_meant_is_allowed(checkpoint: Path, options: dict[str, object], start: RunState) -> None:
    assert check_resumed(checkpoint, with_options(SAVED, **options), start) == []


def test_a_stream_of_other_data_begins_at_its_start(tmp_path: Path) -> None:
    options = with_options(SAVED, streaming=True, train_iters=6, override_resume=["data"])
    saved = replace(_state(), iteration=5, consumed_samples=160, positions=[{"source": 1}])
    _describe(tmp_path, asdict(saved), options)
    assert check_resumed(tmp_path, options, _state()) == []
    assert resumed_state(saved, _state()) == saved
    with pytest.raises(
        ConfigError, match="--shuffle-buffer-size 5: the checkpoint's run has 10000, on which the order"
    ):
        check_resumed(tmp_path, with_options(options, shuffle_buffer_size=5), _state())
    other = _state(data="data b")
    (note,) = check_resumed(tmp_path, options, other)
    assert "begins at its start" in note
    assert resumed_state(saved, other) == replace(saved, data="data b", positions=[])


def test_every_reason_is_told_at_once(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check_resumed(checkpoint, with_options(SAVED, seed=7), _state(train_iters=1, data="data b"))
    assert len(str(error.value).splitlines()) == 3


def test_fresh_weights_of_a_reference_need_their_seed(tmp_path: Path) -> None:
    fresh = with_options(SAVED, pretrained_checkpoint=None)
    _describe(tmp_path, asdict(_state()), fresh)
    with pytest.raises(ConfigError, match="--no-load-rng: the reference has fresh weights"):
        check_resumed(tmp_path, with_options(fresh, seed=7, load_rng=False), _state())
    with pytest.raises(ConfigError, match="--override-resume seed: the reference has fresh weights"):
        check_resumed(tmp_path, with_options(fresh, seed=7, override_resume=["seed"]), _state())


def test_a_checkpoint_that_does_not_know_its_data_resumes(tmp_path: Path) -> None:
    _describe(tmp_path, asdict(_state()) | {"data": None}, SAVED)
    assert check_resumed(tmp_path, SAVED, _state(data="data b")) == []


@pytest.fixture
def left_groups() -> Iterator[None]:
    """A run that is refused leaves its process group to the end of the process."""
    yield
    if dist.is_initialized():
        stop_distributed()


def test_a_refused_run_changes_nothing_and_an_allowed_one_goes_on(
    tiny_run, left_groups, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from megatron_lpc.train import train
    from megatron_lpc.training import checkpoint

    restored: list[Path] = []
    monkeypatch.setattr(checkpoint, "restore_random_state", lambda folder, platform: restored.append(folder))

    def run(*flags: str) -> None:
        common = ("--config", tiny_run.config, "--loss-type", "simpo", "--save", str(tmp_path), "--eval-iters", "1")
        train(parse_args([*common, "--load", "auto", *flags]))

    def files() -> dict[str, str]:
        return {name: (tmp_path / name).read_text() for name in ("config.yaml", "metrics.jsonl")}

    run("--train-iters", "2")
    before = files()
    with pytest.raises(ConfigError, match="--train-iters 1: is fewer steps"):
        run("--train-iters", "1")
    stop_distributed()
    assert files() == before

    other_data = ("--train-data", str(tiny_run.folder / "test_agree.jsonl"))
    run("--train-iters", "3", *other_data, "--seed", "6", "--override-resume", "data", "seed")
    assert restored == []
    run("--train-iters", "4", *other_data, "--seed", "6")
    assert restored == [tmp_path / "iter_0000003"]
    steps = [line["iteration"] for line in read_metrics(tmp_path / "metrics.jsonl") if "evaluation" not in line]
    assert steps == [1, 2, 3, 4]


def test_a_folder_of_an_earlier_run_is_not_written_to(tiny_run, left_groups, tmp_path: Path) -> None:
    """Nor is it by a run that resumes from elsewhere, nor changed by one that is complete."""
    from megatron_lpc.train import train

    def run(save: str, *flags: str) -> dict[str, dict[str, float]]:
        common = ("--config", tiny_run.config, "--loss-type", "simpo", "--eval-iters", "1", "--train-iters", "1")
        return train(parse_args([*common, "--save", str(tmp_path / save), *flags]))

    def content(save: str) -> dict[str, bytes]:
        paths = sorted(path for path in (tmp_path / save).rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in paths}

    first = run("a")
    before = content("a")
    message = r"/a: holds an earlier run \(checkpoints\), which would be overwritten; resume it with --load auto, or"
    with pytest.raises(ConfigError, match=message):
        run("a")
    stop_distributed()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="/b: holds an earlier run"):
        run("b", "--load", str(tmp_path / "a"))
    stop_distributed()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text('{"iteration": 1}\n')
    with pytest.raises(ConfigError, match=r"/c: holds an earlier run \(metrics.jsonl\)"):
        run("c")
    stop_distributed()
    assert run("a", "--load", "auto") == first
    assert content("a") == before
    assert content("b").keys() == {path.replace(f"{tmp_path}/a", f"{tmp_path}/b") for path in before}

    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert run("a", "--load", "auto") == first, "killed in its last evaluation, it evaluates again"
    kept = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [line.get("evaluation") for line in kept] == [None, *first]
