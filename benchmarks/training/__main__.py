"""Speed and memory of training in this project and in TRL's DPOTrainer: one model, the same pairs in the same order.

    python -m benchmarks.training --data hh-harmless.jsonl.gz --output benchmarks/results/train-cpu
    python -m benchmarks.training --data hh-harmless.jsonl.gz --output benchmarks/results/GPU/train \\
        --device cuda --shape llama-3.2-1b --pack-to 8192

Run it from the root of the repository. Every measurement is a process of its own. Each round goes through all of them
in turn, so that a machine that becomes slower affects all alike; the table has medians over the rounds.

Ratios to TRL are medians over the steps of all rounds, as the same step has the same pairs everywhere. The ratio of LPC
to plain DPO is smaller than what two processes differ by, so it is measured in one process that alternates between
steps of the two. So is that of exact to amortized inference with as many codes:

    python -m benchmarks.training --data hh-harmless.jsonl.gz --output benchmarks/results/exact-cpu \\
        --providers shared-packed-lpc-exact-2 shared-packed-lpc-exact-8 shared-packed-lpc-exact-64

All train in the same precision with as many threads, the same global batches and micro-batches, and an online reference
(with LoRA and with a frozen backbone, the policy without what it has learned); weights are random. A cache of hidden
states is filled before the first step of the first round, and the table says how long that takes. A step lasts from the
end of the one before to its own, data included; the first only warms up. Memory is the peak beyond what the process
held before it built its models: resident on a CPU, allocated on a GPU. Tokens count what the algorithm reads, prompt
and response twice per pair, whatever is computed: so tokens/s can be compared.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.training.command_line import command, parse
from benchmarks.training.measure import ROOT, measure_in_process
from benchmarks.training.providers import measurements
from benchmarks.training.report import Rounds, machine, markdown, table
from benchmarks.training.workload import Workload
from megatron_lpc.command_line import UserError, reports_errors
from megatron_lpc.files import write_json, write_text
from megatron_lpc.terminal import progress


def run_rounds(work: Workload, names: list[str], rounds: int, file: Path) -> Rounds:
    """Measure each name once per round; `file` has what is known after each."""
    results: Rounds = {name: [] for name in names}
    turns = [name for _ in range(rounds) for name in names]
    for name in progress(turns, "Measuring", total=len(turns)):
        skipped = results[name] and "skipped" in results[name][-1]
        if not skipped:
            results[name].append(measure_in_process(work, name))
            write_json(file, results)
    return results


def run(arguments: Namespace) -> str:
    """Train a tokenizer, measure, and write both files; the text of table.md."""
    with tempfile.TemporaryDirectory() as folder:
        work = _workload(arguments, Path(folder))
        work.dataset()
        names = measurements(arguments.providers)
        results = run_rounds(work, names, arguments.rounds, arguments.output / "results.json")
        lines = table(work, results)
    note = f"Medians of {arguments.rounds} rounds; spread is (slowest - fastest) / median."
    text = f"{markdown(lines)}\n{machine(work)}. {note}\n\n`{command(arguments)}`\n"
    write_text(arguments.output / "table.md", text)
    return text


def _workload(arguments: Namespace, folder: Path) -> Workload:
    """The workload, with a tokenizer that is trained on its data."""
    tokenizer = folder / "tokenizer"
    trainer = [sys.executable, str(ROOT / "tools" / "train_tokenizer.py"), "--input", str(arguments.data)]
    flags = ["--output", str(tokenizer), "--vocab-size", str(arguments.vocab_size)]
    done = subprocess.run([*trainer, *flags], check=False)
    if done.returncode:
        raise UserError(f"--data {arguments.data}: no tokenizer can be trained on it; the message is above")
    data = arguments.data.resolve() if arguments.pairs is None else _first_rows(arguments.data, arguments.pairs, folder)
    return Workload(
        data=str(data),
        tokenizer=f"{tokenizer}.model",
        cache=str(folder / "cache"),
        device=arguments.device,
        shape=arguments.shape,
        num_layers=arguments.num_layers,
        steps=arguments.steps,
        global_batch_size=arguments.global_batch_size,
        micro_batch_size=arguments.micro_batch_size,
        pack_to=arguments.pack_to,
        max_length=arguments.max_length,
        liger=arguments.liger,
    )


def _first_rows(data: Path, count: int, folder: Path) -> Path:
    """A file of the first `count` lines of JSON lines, compressed by gzip or not. Raises UserError for another file."""
    if not data.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"--pairs {count}: takes the first lines of a .jsonl or .jsonl.gz file, and --data is {data}")
    first = folder / "first.jsonl"
    reader = gzip.open if data.suffix == ".gz" else open
    with reader(data, "rt", encoding="utf-8") as lines, open(first, "w", encoding="utf-8") as kept:
        kept.writelines(islice(lines, count))
    return first


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 when the flags or the data cannot work, with 1 when a measurement failed."""
    with reports_errors():
        text = run(parse(__doc__, argv))
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()
