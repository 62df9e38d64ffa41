"""Runs the files `triton_*.py` of the folders here in a process of their own: with Triton's interpreter, and on a GPU
where there is one.

Triton decides when a kernel is defined whether it is interpreted, so both cannot be had in this process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("triton_*.py"))


def run_file(name: str, *options: str, interpret: bool) -> None:
    file = FOLDER / name
    paths = os.pathsep.join((str(FOLDER), str(file.parent), os.environ.get("PYTHONPATH", "")))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout=540", "-p", "no:cacheprovider", *options, str(file)],
        env={**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": str(int(interpret))},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", FILES)
def test_interpreted(name):
    pytest.importorskip("triton", reason="PyTorch for CPU comes without Triton: pip install triton")
    run_file(name, "-p", "bf16_interpreter", interpret=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FILES)
def test_on_gpu(name):
    run_file(name, interpret=False)
