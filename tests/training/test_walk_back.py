"""A run resumes from its newest sound checkpoint with `--load auto`; a damaged one that is named is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_lpc.config import ConfigError, parse_args, with_options
from megatron_lpc.train import train
from megatron_lpc.training.checkpoint_search import starting_point
from megatron_lpc.training.metrics_file import read_metrics
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed

OLD, NEW, POINTER = "iter_0000002", "iter_0000004", "latest_checkpointed_iteration.txt"
CLOCK = {"tokens_per_sec", "mfu", "step_seconds"}
ONE_RANDOM_STATE = "random_state_00000.safetensors"


def flags(tiny_run, save: Path, *others: str) -> list[str]:
    common = ["--config", tiny_run.config, "--loss-type", "simpo", "--eval-iters", "1", "--save-interval", "2"]
    return [*common, "--save", str(save), *others]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps as it was after its fourth, beside `ended`, as it was at its end."""
    if dist.is_initialized():
        stop_distributed()
    folder = tmp_path_factory.mktemp("runs")
    train(parse_args(flags(tiny_run, folder / "ended", "--train-iters", "6")))
    shutil.copytree(folder / "ended", folder / "run")
    shutil.rmtree(folder / "run" / "iter_0000006")
    (folder / "run" / POINTER).write_text("4\n")
    return folder / "run"


@pytest.fixture(scope="module")
def processes(run: Path, tiny_run) -> Iterator[RunContext]:
    yield start_distributed(parse_args(flags(tiny_run, run, "--train-iters", "6")))
    if dist.is_initialized():
        stop_distributed()


@pytest.fixture
def save(run: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def start(processes: RunContext, save: Path, load: str | None = "auto") -> Path | None:
    return starting_point(replace(processes, config=with_options(processes.config, save=str(save), load=load)))


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


IN_CHECKPOINT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "tensors: half is cut off": ("__0_0.distcp", lambda f: cut(f, 0.5)),
    "tensors: the last byte is cut off": ("__0_0.distcp", lambda f: f.write_bytes(f.read_bytes()[:-1])),
    "tensors: empty": ("__0_0.distcp", lambda f: cut(f, 0)),
    "tensors: deleted": ("__0_0.distcp", Path.unlink),
    "tensors: a bit": ("__0_0.distcp", flip),
    "index: deleted": (".metadata", Path.unlink),
    "index: half": (".metadata", lambda f: cut(f, 0.5)),
    "index: empty": (".metadata", lambda f: cut(f, 0)),
    "index: other bytes": (".metadata", lambda f: f.write_bytes(b"\x80\x04\x95\xff\xff\xff\x7f")),
    "format: garbage": ("metadata.json", lambda f: f.write_text("{")),
    "format: empty": ("metadata.json", lambda f: cut(f, 0)),
    "common: deleted": ("common.pt", Path.unlink),
    "common: half": ("common.pt", lambda f: cut(f, 0.5)),
    "description: half": ("description.json", lambda f: cut(f, 0.5)),
    "description: empty": ("description.json", lambda f: cut(f, 0)),
    "description: not UTF-8": ("description.json", lambda f: f.write_bytes(b"\xff\xfe")),
    "description: a list": ("description.json", lambda f: f.write_text("[]")),
    "description: a key is gone": ("description.json", lambda f: edit(f, lambda c: c.pop("scheduler_steps"))),
    "description: a step in words": ("description.json", lambda f: edit(f, lambda c: c["run"].update(iteration="ten"))),
    "description: an unknown key": ("description.json", lambda f: edit(f, lambda c: c["run"].update(news=1))),
    "generators: deleted": (ONE_RANDOM_STATE, Path.unlink),
    "generators: half": (ONE_RANDOM_STATE, lambda f: cut(f, 0.5)),
}
"""Way -> file, and what is done to it."""
SEEN_BY_CHECKSUM = {
    "tensors: a bit": ("__0_0.distcp", flip),
    "generators: a bit": (ONE_RANDOM_STATE, flip),
    "description: another step": ("description.json", lambda f: edit(f, lambda c: c["run"].update(iteration=3))),
    "manifest: half": ("integrity.json", lambda f: cut(f, 0.5)),
    "manifest: empty": ("integrity.json", lambda f: cut(f, 0)),
}


@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("way", IN_CHECKPOINT | SEEN_BY_CHECKSUM)
def test_a_damaged_checkpoint_is_named_and_not_used(
    processes: RunContext, save: Path, capsys: pytest.CaptureFixture[str], way: str, has_checksums: bool
) -> None:
    file, harm = (IN_CHECKPOINT | SEEN_BY_CHECKSUM)[way]
    if not has_checksums:
        if way in SEEN_BY_CHECKSUM:
            pytest.skip("nothing tells")
        (save / NEW / "integrity.json").unlink()
    harm(save / NEW / file)
    assert start(processes, save) == save / OLD
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is not verified" not in line]
    assert line.startswith(f"warning: {save / NEW}"), line
    assert file in line
    assert line.endswith(f"the run resumes from {OLD}")

    with pytest.raises(ConfigError) as error:
        start(processes, save, load=str(save))
    assert file in str(error.value)
    assert str(error.value).endswith(f"--load {save / OLD} is an older one")
    assert "\n" not in str(error.value)


POINTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda s: (s / POINTER).write_text(""), NEW),
    "not UTF-8": (lambda s: (s / POINTER).write_bytes(b"\xff\xfe\x00"), NEW),
    "zeros": (lambda s: (s / POINTER).write_bytes(bytes(3)), NEW),
    "a path": (lambda s: (s / POINTER).write_text("../other"), NEW),
    "a missing folder": (lambda s: (s / POINTER).write_text("15\n"), NEW),
    "deleted": (lambda s: (s / POINTER).unlink(), NEW),
    "its folder is deleted": (lambda s: shutil.rmtree(s / NEW), OLD),
    "its folder is empty": (lambda s: (shutil.rmtree(s / NEW), (s / NEW).mkdir()), OLD),
    "its folder is without format": (lambda s: (s / NEW / "metadata.json").unlink(), OLD),
}


@pytest.mark.parametrize("way", POINTERS)
def test_a_damaged_pointer_is_named_and_not_used(
    processes: RunContext, save: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    harm, expected = POINTERS[way]
    harm(save)
    assert start(processes, save) == save / expected
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {save}/")
    assert line.endswith(f"the run resumes from {expected}")
    with pytest.raises(ConfigError) as error:
        start(processes, save, load=str(save))
    assert str(save) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_newer_than_the_pointer_is_not_used(processes: RunContext, save: Path) -> None:
    (save / POINTER).write_text("2\n")
    assert start(processes, save) == save / OLD
    flip(save / OLD / "__0_0.distcp")
    with pytest.raises(ConfigError, match="holds no sound checkpoint to resume from; start another run with another"):
        start(processes, save)


def test_nothing_there_is_a_start_from_step_0(processes: RunContext, tmp_path: Path) -> None:
    assert start(processes, tmp_path / "new") is None
    assert start(processes, tmp_path / "new", load=None) is None
    (tmp_path / ".iter_0000002.tmp").mkdir()
    assert start(processes, tmp_path) is None
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        start(processes, tmp_path, load=str(tmp_path))


def test_only_weights_are_no_run_to_resume(processes: RunContext, save: Path) -> None:
    for name in (OLD, NEW):
        (save / name / "description.json").unlink()
        (save / name / "integrity.json").unlink()
    with pytest.raises(ConfigError, match=r"no sound checkpoint.*holds only weights; start from it with --pretrained"):
        start(processes, save)


def test_a_run_that_walks_back_ends_as_if_nothing_had_happened(tiny_run, run: Path, save: Path) -> None:
    if dist.is_initialized():
        stop_distributed()
    flip(save / NEW / "__0_0.distcp")
    train(parse_args(flags(tiny_run, save, "--train-iters", "6", "--load", "auto")))

    def metrics(folder: Path) -> list[dict]:
        lines = read_metrics(folder / "metrics.jsonl")
        return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]

    assert metrics(save) == metrics(run.parent / "ended")
    for name in (f"{NEW}/__0_0.distcp", "iter_0000006/__0_0.distcp"):
        assert (save / name).read_bytes() == (run.parent / "ended" / name).read_bytes()
