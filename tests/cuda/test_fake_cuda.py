"""Whole training steps as they run on CUDA, on tensors that only pretend to be there (see `fake_cuda`).

No figure is computed. What is checked: every operator finds its tensors on the device, weights and activations are
bf16, gradients, optimizer state and loss wider; and how often a step makes the host wait for the device.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import run
from step_cases import CASES

pytest.importorskip("triton")
HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
QUICK = ("window", "packed-shared", "recompute-full", "offloaded-reference", "experts", "overlapped", "pipeline")
"""What the gate runs; `slow` are the others."""

_PER_STEP = {"get_grad_norm_fp32": 1}
"""The one wait of a step: the gradient norm, with which the metrics come."""
_PAIRWISE = "Segments.host_cu_seqlens"
"""The wait of `pair_logps` for the lengths of responses, one per micro-batch on the last stage."""
_PADDED_PIPELINE = {"P2PCommunicator._communicate_shapes": 11}
_OF_CORE: dict[str, dict[str, int]] = {
    "experts": {"permute": 16},
    **dict.fromkeys(("pipeline", "pipeline-none", "pipeline-recompute"), _PADDED_PIPELINE),
    "pipeline-frozen": {"P2PCommunicator._communicate_shapes": 4},
}
"""Waits within megatron-core. Experts: two in each layer of each pass, where TransformerEngine's fused permutation is
not there. Pipeline stages that send padded micro-batches tell each other the shape of each; those of a frozen backbone
in a forward pass only."""


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], dict[str, Any]]:
    """Gives what `step_worker` wrote about all quick, or all other, cases; each kind is run once."""
    if COMPILER is None:
        pytest.skip("the fake device is compiled with g++, which is not installed")
    folder = tmp_path_factory.mktemp("fake_cuda")
    library = build_device(folder)

    @cache
    def run_kind(quick: bool) -> dict[str, Any]:
        names = [name for name in CASES if (name in QUICK) == quick]
        output = folder / f"{quick}.json"
        run([sys.executable, str(HERE / "step_worker.py"), str(library), str(output), *names], timeout=540)
        return json.loads(output.read_text(encoding="utf-8"))

    return run_kind


def build_device(folder: Path) -> Path:
    """Compile `fake_cuda.cpp` against the installed torch."""
    torch_folder = Path(torch.__file__).parent
    library = folder / "fake_cuda.so"
    libraries = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [str(COMPILER), "-std=c++20", "-fPIC", "-shared", f"-I{torch_folder / 'include'}"]
    command += [str(HERE / "fake_cuda.cpp"), "-o", str(library), *libraries]
    subprocess.run(command, check=True, timeout=300)
    return library


@pytest.fixture
def ranks(run_cases: Callable[[bool], dict[str, Any]], case: str) -> dict[str, dict[str, list]]:
    """What each rank of a case found."""
    found = run_cases(case in QUICK)[case]
    assert "error" not in found, f"the step of case {case} failed:\n{found['error']}"
    return found


EVERY_CASE = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)


@EVERY_CASE
def test_tensors_are_on_the_device_in_the_right_precision(ranks: dict[str, dict[str, list]], case: str) -> None:
    problems = {rank: found["problems"] for rank, found in ranks.items() if found["problems"]}
    assert not problems, f"case {case}:\n" + "\n".join(
        f"rank {rank}: {problem}" for rank, of_rank in problems.items() for problem in of_rank
    )


@EVERY_CASE
def test_the_host_waits_once_per_step(ranks: dict[str, dict[str, list]], case: str) -> None:
    for rank, found in ranks.items():
        counted = Counter(wait["line"].split()[-1] for wait in found["waits"])
        expected = _PER_STEP | _OF_CORE.get(case, {})
        is_last_stage = int(rank) == CASES[case].ranks[0]
        if is_last_stage and CASES[case].is_pairwise:
            expected |= {_PAIRWISE: CASES[case].micro_batches}
        lines = "\n".join(f"{wait['kind']} at {wait['line']}" for wait in found["waits"])
        assert counted == expected, f"case {case}, rank {rank}: the host waits at\n{lines}"
