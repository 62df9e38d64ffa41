"""A resumed run is the run that never stopped; a checkpoint loads in every layout; a killed save harms nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_worker import SAVED, STEPS
from launch import torchrun

pytestmark = pytest.mark.distributed
WORKER = Path(__file__).parent / "checkpoint_worker.py"

SAME = {"single": 1, "dp2": 2, "tp2_bf16": 2, "pp2_tied": 2, "dp2_overlap": 2}
"""Run that is resumed in its own layout -> processes."""
OTHER = [
    ("single_plain", "tp2"),
    ("pp2_interleaved", "tp2"),
    ("dp2_sharded", "tp2"),
    ("single_plain", "dp2_overlap"),
    ("tp2", "dp2_overlap"),
    ("single_tied", "pp2_tied"),
    ("dp2_experts", "tp2_experts"),
]
"""Run, and the run in another layout, and with or without the distributed optimizer, that wrote its checkpoint."""
REFUSALS = {
    "codebook": "latent_head.codebook has shape [6, 32], this model needs [12, 32]",
    "continuous": "lacks latent_head.network.0.bias",
    "untied": "lacks output_layer.weight",
    "bias": "holds decoder.layers.self_attention.k_layernorm.weight, decoder.layers.self_attention.linear_qkv.bias",
    "width": "decoder.layers.mlp.linear_fc1.weight has shape [4, 96, 32], this model needs [4, 128, 32]",
    "vocabulary": "--vocab-size 101, now 104",
    "options": "--rotary-base 10000.0, now 500",
    "resume_bf16": "--bf16 false, now true",
    "resume_latent": "--latent-mode continuous, now lpc",
    "resume_layers": "--num-layers 4, now 2",
    "resume_nothing": "holds no checkpoint",
    "resume_weights": "holds only weights; start from it with --pretrained-checkpoint",
    "resume_damaged": "description.json: cannot be read",
}


def run_alone(folder: Path, *jobs: str) -> int:
    command = [sys.executable, str(WORKER), str(folder), *jobs]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), (
        f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-8000:]}"
    )
    return done.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every run that saves, and later, in fresh processes, every run that resumes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "empty").mkdir()
    run_alone(folder, "straight:single", "straight:single_async", "initial:sft", "initial:continuous")
    torchrun(
        2,
        WORKER,
        str(folder),
        *(f"straight:{name}" for name in ("dp2", "tp2_bf16", "pp2_tied", "dp2_overlap", "tp2", "tp2_experts")),
    )
    resumed = [f"resume:{name}:{name}" for name, processes in SAME.items() if processes == 2]
    resumed += [f"resume:{name}:{source}" for name, source in OTHER if not name.startswith("single")]
    torchrun(2, WORKER, str(folder), *resumed)
    return folder


@pytest.fixture(scope="module")
def killed_twice(folder: Path) -> list[tuple[int, list[str], str]]:
    """(exit status, checkpoint folder, pointer) after two runs that were killed.

    The first died among the tensors of its save; its successor saved once and died with a second save complete but for
    the pointer.
    """
    save = folder / "killed"
    shutil.copytree(folder / "single", save)

    def after(place: str) -> tuple[int, list[str], str]:
        status = run_alone(folder, f"killed:single:{place}")
        pointer = (save / "latest_checkpointed_iteration.txt").read_text().strip()
        return status, sorted(path.name for path in save.iterdir() if path.is_dir()), pointer

    return [after("between_tensors"), after("before_pointer")]


@pytest.fixture(scope="module")
def resumed_alone(folder: Path, killed_twice: object) -> Path:
    """After every resume in one process."""
    jobs = ["resume:single:single", "resume:single:single_async", "resume:single:killed"]
    jobs += [f"resume:{name}:{source}" for name, source in OTHER if name.startswith("single")]
    assert run_alone(folder, *jobs, "weights") == 0
    return folder


def read(folder: Path, name: str, rank: int = 0) -> dict:
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def assert_same(resumed: dict, straight: dict, first: int) -> None:
    assert resumed["first"] == first
    assert len(straight["losses"]) == STEPS
    assert resumed["losses"] == straight["losses"][first:]
    assert resumed["lr"] == straight["lr"]
    assert resumed["parameters"].keys() == straight["parameters"].keys()
    for name, value in straight["parameters"].items():
        assert torch.equal(resumed["parameters"][name], value), name
    for one, other in zip(resumed["masters"], straight["masters"], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(resumed["moments"], straight["moments"], strict=True):
        assert other["step"] == STEPS
        assert one.keys() == other.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("name", SAME)
def test_resume_is_exact(resumed_alone: Path, name: str) -> None:
    for rank in range(SAME[name]):
        resumed, straight = (read(resumed_alone, f"{kind}-{name}", rank) for kind in (f"resume-{name}", "straight"))
        assert_same(resumed, straight, SAVED)


def test_training_moves(folder: Path) -> None:
    """The comparison above would pass on a run that learns nothing."""
    losses = read(folder, "straight-single")["losses"]
    assert len(set(losses)) == STEPS
    assert losses[-1] < losses[0]


def test_asynchronous_save_equals_synchronous(resumed_alone: Path) -> None:
    assert_same(read(resumed_alone, "resume-single-single_async"), read(resumed_alone, "straight-single"), SAVED)


@pytest.mark.parametrize(("name", "source"), OTHER)
def test_other_layout_goes_on(resumed_alone: Path, name: str, source: str) -> None:
    resumed, straight = read(resumed_alone, f"resume-{name}-{source}"), read(resumed_alone, f"straight-{source}")
    assert resumed["losses"] == pytest.approx(straight["losses"][SAVED:], abs=1e-5)
    assert resumed["lr"] == straight["lr"]
    assert {int(state["step"]) for state in resumed["moments"]} == {STEPS}


def test_killed_save_leaves_the_older_checkpoint(killed_twice: list[tuple[int, list[str], str]]) -> None:
    among_tensors, before_pointer = killed_twice
    assert among_tensors == (-signal.SIGKILL, [".iter_0000004.tmp", "iter_0000003"], "3")
    assert before_pointer == (-signal.SIGKILL, ["iter_0000003", "iter_0000004", "iter_0000005"], "4")


def test_resume_after_killed_saves_is_exact(resumed_alone: Path) -> None:
    assert_same(read(resumed_alone, "resume-single-killed"), read(resumed_alone, "straight-single"), 4)


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(resumed_alone: Path, case: str) -> None:
    message = json.loads((resumed_alone / "messages.json").read_text())[case]
    assert REFUSALS[case] in message
    assert str(resumed_alone) in message


def test_checkpoint_of_random_states_is_private_to_its_layout(folder: Path) -> None:
    """One file per rank, beside a description that names the layout."""
    checkpoint = folder / "dp2" / f"iter_{SAVED:07d}"
    assert len(list(checkpoint.glob("random_state_*.safetensors"))) == 2
    description = json.loads((checkpoint / "description.json").read_text())
    assert description["layout"]["world_size"] == 2
    steps = {"iteration": SAVED, "consumed_samples": 8 * SAVED, "bad_steps": 0, "train_iters": 10}
    assert description["run"] == steps | {"data": None, "positions": []}
