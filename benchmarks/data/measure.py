"""One measurement each; call them in a process of their own, since they look at its highest memory."""

from __future__ import annotations

import gzip
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import cycle, islice
from multiprocessing import active_children
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.resident_memory import resident
from megatron_lpc.config import DataConfig
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.row_chunks import ROWS_PER_CHUNK, RowChunks, RowEncoder
from megatron_lpc.data.sampler import TrainingOrder
from megatron_lpc.data.source import read_rows
from megatron_lpc.data.tokenization import encode_rows
from megatron_lpc.data.tokenizer import load_tokenizer

T = TypeVar("T")


def repeat_lines(data: Path, num_lines: int, target: Path) -> None:
    """Write a JSONL file of so many lines: those of `data`, again and again."""
    lines = gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()
    with open(target, "wb") as file:
        file.writelines(islice(cycle(lines.splitlines(keepends=True)), num_lines))


def rows_per_second(source: str, tokenizer: str, max_length: int, num_workers: int) -> tuple[float, float]:
    """Rows that become record batches, reading included, from the first chunk that is ready to the last.

    Returns:
        Rows per second, and rows per second of processor time of all processes together, which other work on the
        machine does not change much.
    """
    config = DataConfig(tokenizer_model=tokenizer, max_length=max_length)
    encoder = RowEncoder(load_tokenizer(config), config)
    with closing(encode_rows(RowChunks((source,)), encoder, num_workers)) as chunks:
        next(chunks)
        began, cpu_before = time.perf_counter(), _cpu_seconds()
        num_rows = 0
        for chunk in chunks:
            num_rows += chunk.num_rows
            seconds, cpu_seconds = time.perf_counter() - began, _cpu_seconds() - cpu_before
    # By the time that the first chunk is ready, every process has done about one.
    num_rows -= (num_workers - 1) * ROWS_PER_CHUNK
    return num_rows / seconds, num_rows / cpu_seconds


def _cpu_seconds() -> float:
    """Processor time of this process and of those that it has started and that are running."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in active_children())):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def reading_rows_per_second(source: str, are_wanted: bool) -> float:
    """Rows per second of processor time that are read and parsed, or read past where they are not wanted."""
    num_rows = 0

    def wanted() -> bool:
        nonlocal num_rows
        num_rows += 1
        return are_wanted

    began = time.process_time()
    for _ in read_rows(source, wanted):
        pass
    return num_rows / (time.process_time() - began)


def build_memory(source: str, tokenizer: str, max_length: int, num_workers: int) -> int:
    """Bytes that building a cache, and opening it, adds at most to the memory of the process that does so."""
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(
            tokenizer_model=tokenizer,
            max_length=max_length,
            bad_rows="skip",
            data_cache_path=folder,
            num_workers=num_workers,
        )
        loaded = load_tokenizer(config)
        return _with_memory(lambda: build_dataset(config, loaded, [source], "train"))[1]


def sampling(num_examples: int, batch: int, steps: int) -> tuple[float, int]:
    """Seconds per global batch of the order of training, and the bytes that it takes at most."""

    def work() -> float:
        order = TrainingOrder(num_examples, 1234)
        began = time.perf_counter()
        for step in range(steps):
            order.example_indices(range(step * batch, (step + 1) * batch))
        return (time.perf_counter() - began) / steps

    return _with_memory(work)


def list_sampling(num_examples: int) -> tuple[float, int]:
    """Seconds and bytes of a list of all examples, `torch.randperm`, for comparison."""

    def work() -> float:
        began = time.perf_counter()
        torch.randperm(num_examples)
        return time.perf_counter() - began

    return _with_memory(work)


def _with_memory(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` returns, and how many bytes of resident memory it added at most."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # The highest memory counts from here.
    before = resident("VmRSS")
    result = work()
    return result, resident("VmHWM") - before
