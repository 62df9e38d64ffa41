"""Speed of importing and exporting a model beside that of `cp` on the same files, in the same run.

    python -m benchmarks.conversion --folder /tmp --gigabytes 1.5 --output benchmarks/results/conversion.md

The model is a random Llama in bf16, in shards of 1 GB. Each round copies, imports and exports it, each of them twice:
the second time is measured, after the kernel has written all files to disk. The first fills memory that the second
finds free. Without it the measurement compares kinds of memory: in a virtual machine whose host hands memory out when
it is first used, the same `cp` took 0.47 s in memory that had just been freed, and 1.8 to 2.3 s in other memory. None
of the three waits for the disk at its end; the figures "on disk" include that wait.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.kernels.provenance import provenance
from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hf_writer import TensorGroup, write_safetensors
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.settings import read_model
from megatron_lpc.convert.tensor_files import TensorInfo
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table

LLAMA: dict[str, Any] = {
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
"""config.json of a Llama of 1.98 billion parameters."""
_LAYER_BYTES = 121.6e6
"""Of one of its layers."""


def make_llama(folder: Path, **settings: Any) -> int:
    """Write a random Llama in bf16, in shards of 1 GB, a tensor at a time.

    Args:
        settings: settings of config.json that differ from those of `LLAMA`.

    Returns:
        Bytes of the weights.
    """
    config = LLAMA | settings
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    family, model = read_model(config)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()

    def tensor(shape: tuple[int, ...], shift: int) -> list[torch.Tensor]:
        count = torch.Size(shape).numel()
        return [block.roll(shift).repeat(count // block.numel() + 1)[:count].view(shape)]

    groups = []
    for weight in family.all_weights(model):
        for place in weight.places(model):
            for name, shape in zip(weight.hf_names(place), weight.hf_shapes(model), strict=True):
                info = TensorInfo(shape, torch.bfloat16)
                groups.append(TensorGroup({name: info}, partial(tensor, shape, len(groups))))
    write_safetensors(folder, groups, 10**9)
    return sum(group.nbytes for group in groups)


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of `cp`, import and export in every round, and the same until all is on disk.

    Args:
        folder: holds the model, in `hf`; copies are made and removed beside it.
    """
    hf, megatron, written = (folder / name for name in ("hf", "megatron", "written"))
    import_hf(hf, megatron)
    works: dict[str, Callable[[], Any]] = {
        "cp": lambda: subprocess.run(["cp", "-r", str(hf), str(written)], check=True),
        "import": lambda: import_hf(hf, written),
        "export": lambda: export_hf(megatron, written),
    }
    seconds: dict[str, list[float]] = {name: [] for work in works for name in (work, f"{work}, on disk")}
    for _ in range(rounds):
        for name, work in works.items():
            for _unmeasured_then_measured in range(2):
                cached, on_disk = _timed(work)
                shutil.rmtree(written)
            seconds[name].append(cached)
            seconds[f"{name}, on disk"].append(on_disk)
    return seconds


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until it returns, and until all that it wrote is on disk."""
    os.sync()
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        work()
    ended = time.perf_counter()
    os.sync()
    return ended - start, time.perf_counter() - start


def report(command: str, nbytes: int, seconds: dict[str, list[float]]) -> str:
    """The figures as a page of Markdown."""
    gigabytes = nbytes / 1e9
    rows = []
    for name, times in seconds.items():
        copies = seconds["cp, on disk" if name.endswith("on disk") else "cp"]
        shares = [copied / each for copied, each in zip(copies, times, strict=True)]
        speeds = [f"{gigabytes / each:.2f}" for each in times]
        rows.append((name, f"{gigabytes / median(times):.2f}", f"{median(shares):.0%}", " ".join(speeds)))
    known = provenance(command, "cpu")
    lines = [f"- {key}: {known[key]}" for key in ("command", "commit", "device", "threads", "torch", "python")]
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    lines.append(f"- model: {gigabytes:.2f} GB; {os.cpu_count()} cores, load average {load} at the end")
    table = markdown_table(("work", "GB/s", "share of cp", "every round"), rows)
    return "# Conversion beside cp\n\n" + "\n".join(lines) + "\n\nMedians of the rounds.\n\n" + table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its page.

    Raises:
        SystemExit: 2 for flags that mean nothing.
    """
    with reports_errors():
        _main(argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files are written (default: the temporary folder)")
    parser.add_argument("--gigabytes", type=float, default=1.5, help="size of the model, above 1.2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a file for the page, beside standard output")
    options = parser.parse_args(argv)
    command = f"python -m benchmarks.conversion --gigabytes {options.gigabytes:g} --rounds {options.rounds}"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        page = _measured_page(Path(folder), options, command)
    sys.stdout.write(page)
    if options.output:
        write_text(options.output, page)


def _measured_page(folder: Path, options: argparse.Namespace, command: str) -> str:
    embeddings = 2 * 2 * LLAMA["vocab_size"] * LLAMA["hidden_size"]
    layers = max(1, round((options.gigabytes * 1e9 - embeddings) / _LAYER_BYTES))
    nbytes = make_llama(folder / "hf", num_hidden_layers=layers)
    return report(command, nbytes, measure(folder, options.rounds))


if __name__ == "__main__":
    main()
