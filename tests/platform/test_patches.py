"""Every patch of a library is still needed: without it its symptom shows, with it the symptom is gone.

Patches cannot be undone, so each case runs in processes of its own. Where `test_symptom_shows_without_the_patch`
fails after an upgrade, the library has been fixed: remove the patch.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_lpc.platform import patches
from megatron_lpc.platform.patches.known_warnings import KNOWN_WARNINGS
from megatron_lpc.platform.patches.patch import Patch


@dataclass(frozen=True)
class Case:
    """What a patch must make work."""

    module: str
    patch: str
    program: str
    """Fails without the patch."""
    message: str
    """What it then says."""


# Core's own calls, so that a later version of it which needs no patch passes without one.
CASES = [
    Case(
        "cuda_device_literals",
        "redirect_cuda_device_literals",
        """
import torch.distributed as dist
from megatron.core.optimizer.clip_grads import get_grad_norm_fp32

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
assert get_grad_norm_fp32([torch.tensor([3.0, 4.0])]) == 5.0
dist.destroy_process_group()
""",
        "CUDA",
    ),
    Case(
        "cuda_runtime",
        "redirect_cuda_runtime",
        """
from megatron.core.utils import GlobalMemoryBuffer

assert GlobalMemoryBuffer().get_tensor((2,), torch.float32, "buffer").device.type == "cpu"
""",
        "CUDA",
    ),
    Case(
        "cuda_generator",
        "redirect_cuda_generator",
        """
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

tracker = CudaRNGStatesTracker()
tracker.add("stream", 1)
with tracker.fork("stream"):
    drawn = torch.rand(3)
torch.manual_seed(1)
assert torch.equal(drawn, torch.rand(3))
""",
        "CUDA",
    ),
    Case(
        "cuda_tensor_types",
        "accept_cpu_tensor_types",
        """
from megatron.core.optimizer import clip_grads

parameter = torch.nn.Parameter(torch.ones(2))
parameter.grad = torch.ones(2)
clip_grads.clip_grad_by_total_norm_fp32([parameter], max_norm=1.0, total_norm=0.5)
""",
        "torch.cuda.FloatTensor",
    ),
    Case(
        "moe_router",
        "define_te_general_gemm",
        """
from megatron.core.transformer.moe import moe_utils

logits = moe_utils.router_gating_linear(torch.ones(2, 3), torch.ones(4, 3), None, torch.float32)
assert torch.equal(logits, torch.full((2, 4), 3.0))
""",
        "name 'te_general_gemm' is not defined",
    ),
    Case(
        "gradient_norm",
        "compute_gradient_norm_on_device",
        """
from megatron.core.optimizer import clip_grads
from torch.utils._python_dispatch import TorchDispatchMode

class Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        Reads.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))

tensor = torch.tensor
torch.tensor = lambda values, **options: tensor(values, **{**options, "device": "cpu"})
gradients = [torch.tensor([3.0]), torch.tensor([4.0, 0.0])]
with Reads():
    norm, _ = clip_grads.l2_norm_impl(2048, None, [gradients], False)
assert norm.tolist() == [5.0]
assert Reads.count == 0, "the host reads norms"
""",
        "the host reads norms",
    ),
    Case(
        "checkpoint_results_queue",
        "answer_through_results_file",
        """
import multiprocessing
from megatron.core.dist_checkpointing.strategies import filesystem_async

results = filesystem_async._get_write_results_queue()
results.put({"written": 3})
assert results.get_nowait() == {"written": 3}
assert not multiprocessing.active_children(), "a manager process was started"
""",
        "a manager process was started",
    ),
    Case("known_warnings", "silence_known_warnings", "import megatron.core.optimizer", "not installed"),
    Case(
        "transformer_engine_import",
        "hide_transformer_engine_without_gpu",
        "import megatron.core.models.gpt",
        "TransformerEngine needs a GPU",
    ),
]
_IDS = [case.module for case in CASES]


def run(case: Case, folder: Path, with_patch: bool) -> subprocess.CompletedProcess[str]:
    """Run the program of a case on a machine that has no GPU."""
    python_path = os.pathsep.join(sys.path)
    lines = ["import sys, warnings, torch"]
    if case.module == "known_warnings":
        lines.append('warnings.filterwarnings("error", category=UserWarning, module=r"megatron\\.core")')
    if case.module == "transformer_engine_import":
        package = folder / "transformer_engine"
        package.mkdir()
        (package / "__init__.py").write_text('raise RuntimeError("TransformerEngine needs a GPU")\n', encoding="utf-8")
        python_path = f"{folder}{os.pathsep}{python_path}"
    else:
        lines.append('sys.modules["transformer_engine"] = None')
    if with_patch:
        # None of the other patches is applied, except those of importing `megatron_lpc`.
        lines.append(f"from megatron_lpc.platform.patches.{case.module} import {case.patch}")
        lines.append(f"{case.patch}()")
    program = "\n".join([*lines, case.program])
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": python_path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=_IDS)
def test_symptom_shows_without_the_patch(case: Case, tmp_path: Path) -> None:
    done = run(case, tmp_path, with_patch=False)
    assert done.returncode != 0, f"{case.patch} is no longer needed: remove it"
    assert case.message in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=_IDS)
def test_patch_cures_the_symptom(case: Case, tmp_path: Path) -> None:
    done = run(case, tmp_path, with_patch=True)
    assert done.returncode == 0, done.stderr


def test_every_patch_has_a_case() -> None:
    found = set()
    for info in pkgutil.iter_modules(patches.__path__):
        module = importlib.import_module(f"{patches.__name__}.{info.name}")
        names = [name for name, value in vars(module).items() if isinstance(value, Patch)]
        found |= {(info.name, name) for name in names}
    assert found == {(case.module, case.patch) for case in CASES}


def test_every_patch_says_what_it_is_for() -> None:
    for case in CASES:
        patch = getattr(importlib.import_module(f"{patches.__name__}.{case.module}"), case.patch)
        assert (patch.name, patch.library) == (case.patch, "megatron-core")
        assert patch.symptom.endswith(".")
        assert inspect.getdoc(patch.change)


@pytest.mark.parametrize("message", KNOWN_WARNINGS)
def test_libraries_still_raise_each_warning_that_is_silenced(message: str) -> None:
    text = _TEXTS.get(message, message)
    assert any(text in path.read_text(encoding="utf-8") for path in _library_files()), (
        f"no library says {text!r} any more: remove it from KNOWN_WARNINGS"
    )


_TEXTS = {"(Transformer Engine and )?Apex (is|are) not installed": "Transformer Engine and Apex are not installed"}


def _library_files() -> list[Path]:
    """Sources of the modules in which warnings are silenced. megatron-core's folder is found without importing it."""
    folders = [folder for name in ("megatron.core", "torch.distributed") for folder in _folders(name)]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    return [Path(place) for place in spec.submodule_search_locations or []]
