"""Rows tokenized per second by number of processes, and memory of tokenization and of the order of training.

    python -m benchmarks.data --data hh-harmless.jsonl.gz --output benchmarks/results/data

Run it from the root of the repository. The rows of the file are repeated; a tokenizer is trained on them. Every
measurement is a process of its own. Each round goes through all of them in turn, so that a machine that becomes slower
affects all alike; rates are medians over the rounds, and the ratio to one process is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from benchmarks.data.measure import (
    build_memory,
    list_sampling,
    reading_rows_per_second,
    repeat_lines,
    rows_per_second,
    sampling,
)
from benchmarks.data.tokenizers import train_bpe
from benchmarks.kernels.provenance import provenance
from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table

T = TypeVar("T")
_BATCH, _STEPS = 512, 100


def in_process(measure: Callable[..., T], *arguments: object) -> T:
    """The result of a function, called in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def tokenization_table(arguments: argparse.Namespace, folder: Path) -> str:
    """Rates by number of processes."""
    source, tokenizer = str(folder / "rows.jsonl"), str(folder / "tokenizer")
    repeat_lines(arguments.data, arguments.rows, Path(source))
    rounds = [
        {
            workers: in_process(rows_per_second, source, tokenizer, arguments.max_length, workers)
            for workers in arguments.workers
        }
        for _ in range(arguments.rounds)
    ]
    parsing, passing = (in_process(reading_rows_per_second, source, are_wanted) for are_wanted in (True, False))
    alone = arguments.workers[0]
    lines = []
    for workers in arguments.workers:
        rates, cpu_rates = zip(*(measured[workers] for measured in rounds), strict=True)
        ratios = [measured[workers][0] / measured[alone][0] for measured in rounds]
        cpu_ratios = [measured[workers][1] / measured[alone][1] for measured in rounds]
        lines.append(
            [
                workers,
                f"{statistics.median(rates):,.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{statistics.median(cpu_rates):,.0f}",
                f"{statistics.median(cpu_ratios):.2f}",
            ]
        )
    headings = ["processes", "rows/s", f"/ {alone} process", "in single rounds", "rows / CPU s", f"/ {alone} process"]
    reading_line = (
        f"Reading and parsing alone: {parsing:,.0f} rows / CPU s. Reading past the rows that other processes take: "
        f"{passing:,.0f}."
    )
    return f"{markdown_table(headings, lines)}\n{reading_line}\n"


def memory_table(arguments: argparse.Namespace, folder: Path) -> str:
    """Memory of building a cache by number of rows, and of the order of training."""
    source, tokenizer = folder / "rows.jsonl", str(folder / "tokenizer")
    lines: list[list[str]] = []
    for rows in (arguments.rows // 4, arguments.rows):
        repeat_lines(arguments.data, rows, source)
        nbytes = in_process(build_memory, str(source), tokenizer, arguments.max_length, arguments.workers[-1])
        lines.append([f"tokenizing and opening {rows:,} rows", "", f"{nbytes / 2**20:,.0f}"])
    for examples in (10**6, 10**8):
        seconds, nbytes = in_process(sampling, examples, _BATCH, _STEPS)
        lines.append([f"order of {examples:,} pairs", f"{seconds * 1e3:.2f} per step", f"{nbytes / 2**20:,.0f}"])
    seconds, nbytes = in_process(list_sampling, 10**8)
    lines.append([f"`torch.randperm({10**8:,})`", f"{seconds * 1e3:,.0f} per epoch", f"{nbytes / 2**20:,.0f}"])
    return markdown_table(["what", "ms", "added MiB"], lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs: .jsonl or .jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder for table.md")
    parser.add_argument("--rows", type=int, default=60_000, help="rows of a measurement")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, cores], help="numbers of processes, 1 first")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the tokenizer")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    with reports_errors():
        arguments = parse(argv)
        with tempfile.TemporaryDirectory() as folder:
            train_bpe(arguments.data, arguments.vocab_size, Path(folder) / "tokenizer")
            tables = [tokenization_table(arguments, Path(folder)), memory_table(arguments, Path(folder))]
        command = f"python -m benchmarks.data --data {arguments.data.name} " + " ".join(
            f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in vars(arguments).items()
            if name not in ("data", "output")
        )
        known = provenance(f"`{command}`", "cpu")
        header = "".join(f"- {name}: {known[name]}\n" for name in ("command", "commit", "device", "python"))
        text = "\n".join([header, *tables])
        write_text(arguments.output / "table.md", text)
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
