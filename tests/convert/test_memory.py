"""Importing and exporting two billion parameters needs little memory. Needs 13 GB of disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron_lpc.convert.hf_folder import HFFolder

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_hf.py"
sys.path.insert(0, str(ROOT))
from benchmarks.conversion import LLAMA, make_llama  # noqa: E402 (the root is on the path from here on)

_REPORTED = """
import atexit, runpy, sys
atexit.register(lambda: print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _measured(*arguments: object) -> tuple[int, float]:
    """Peak resident memory of the program in bytes, and seconds.

    The program itself reports its memory: its ru_maxrss as seen from here also includes this process before the exec.
    """
    start = time.monotonic()
    command = [sys.executable, "-c", _REPORTED, TOOL, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024, time.monotonic() - start


@pytest.mark.slow
def test_two_billion_parameters(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 14 * 10**9:
        pytest.skip("needs 14 GB of disk")
    nbytes = make_llama(tmp_path / "hf")
    assert nbytes > 3.9e9
    largest = 2 * LLAMA["vocab_size"] * LLAMA["hidden_size"]
    try:
        for what, arguments in (
            ("import", ("--hf", tmp_path / "hf", "--output", tmp_path / "megatron")),
            ("export", ("--load", tmp_path / "megatron", "--output", tmp_path / "back")),
        ):
            peak, seconds = _measured(what, *arguments)
            speed = nbytes / 1e9 / seconds
            print(
                f"{what}: {nbytes / 1e9:.2f} GB, peak {peak / 1e6:.0f} MB, {seconds:.1f} s with start, {speed:.2f} GB/s"
            )
            assert peak < largest + 10**9
        one, other = HFFolder(tmp_path / "hf"), HFFolder(tmp_path / "back")
        assert one.tensors == other.tensors
        assert all(torch.equal(one.read(name), other.read(name)) for name in one.tensors)
    finally:
        for folder in ("hf", "megatron", "back"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
