"""Importing and exporting two billion parameters needs little memory. Needs 13 GB of disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.hf_writer import TensorGroup, write_safetensors
from megatron_lpc.convert.settings import read_model
from megatron_lpc.convert.tensor_files import TensorInfo

TOOL = Path(__file__).parents[2] / "tools" / "convert_hf.py"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def _make_model(folder: Path) -> int:
    """Bytes of the weights, in shards of 1 GB."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    family, model = read_model(CONFIG)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()

    def tensor(shape: tuple[int, ...], shift: int) -> list[torch.Tensor]:
        count = torch.Size(shape).numel()
        return [block.roll(shift).repeat(count // block.numel() + 1)[:count].view(shape)]

    groups = []
    for weight in family.all_weights(model):
        for place in weight.places(model):
            for name, shape in zip(weight.hf_names(place), weight.hf_shapes(model), strict=True):
                groups.append(
                    TensorGroup({name: TensorInfo(shape, torch.bfloat16)}, partial(tensor, shape, len(groups)))
                )
    write_safetensors(folder, groups, 10**9)
    return sum(info.nbytes for group in groups for info in group.tensors.values())


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
    nbytes = _make_model(tmp_path / "hf")
    assert nbytes > 3.9e9
    largest = 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"]
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
