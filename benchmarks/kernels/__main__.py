"""Time and extra memory of the kernels and of what does their job elsewhere, all providers in turn in one run.

    # On a GPU
    python -m benchmarks.kernels pair_logps --model llama-3-8b qwen-3-8b --latents 1 2 --tp 1 8
    python -m benchmarks.kernels gumbel_mix --codes 64 --hidden-size 4096 --pairs 64

    # On a CPU
    python -m benchmarks.kernels pair_logps --device cpu --dtype fp32 --model 512x32000 --tokens 2048 \\
        --masked 0 0.5 --latents 1 2 --providers pytorch pairwise

Run it from the root of the repository. Lists are crossed with each other. It writes NAME.csv, NAME.md and NAME.png into
the folder DIR of `--output DIR/NAME`.

Times are medians, with the 20th and 80th percentile. Rates are nominal work over the median: 6 N V H operations for
training and 2 N V H for scoring, of the loss tokens and one latent, whatever a provider really does (`gumbel_mix`: the
bytes that have to be moved once). Their share is that of the vendor's product (of a large copy) of the same run.

Extra memory is the highest point of a step above its inputs, gradients included; on CPU it is the resident memory of a
fresh process. A provider that does not run is named with the reason. With `--tp` the head is the vocabulary shard of
one rank, and nothing is communicated.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.kernels.clock import peak_bandwidth, peak_flops
from benchmarks.kernels.command_line import cases, parse
from benchmarks.kernels.measure import measure
from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.picture import write_picture
from benchmarks.kernels.provenance import provenance
from benchmarks.kernels.providers import Case
from benchmarks.kernels.report import Measured, all_rows, write_csv, write_markdown
from megatron_lpc.command_line import reports_errors


def run(arguments: Namespace, origin: dict[str, str], output: Path) -> list[Measured]:
    """Measure all cases, and write the files of `output` after each: a long run that is stopped keeps what it has."""
    wanted = cases(arguments)
    bandwidth = 0.0
    if arguments.kernel == "gumbel_mix":
        bandwidth = peak_bandwidth(arguments.device, arguments.rounds, arguments.clock)
    measured: list[Measured] = []
    for number, case in enumerate(wanted, start=1):
        labels = " ".join(f"{key}={value}" for key, value in case.labels().items())
        print(f"{number} of {len(wanted)}: {labels}", file=sys.stderr)
        measured.append(_measure(case, arguments, bandwidth))
        write_csv(output.with_suffix(".csv"), measured, origin)
        write_markdown(output.with_suffix(".md"), measured, origin)
        write_picture(output.with_suffix(".png"), measured)
    return measured


def _measure(case: Case, arguments: Namespace, bandwidth: float) -> Measured:
    results = measure(case, arguments.providers, arguments.rounds, arguments.clock)
    peak = peak_flops(case, arguments.rounds, arguments.clock) if isinstance(case, PairCase) else bandwidth
    return Measured(case, results, peak)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with reports_errors():
        arguments = parse(__doc__, argv)
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        command = shlex.join(["python", "-m", "benchmarks.kernels", *argv])
        output = arguments.output or Path("benchmarks/results") / arguments.kernel
        measured = run(arguments, provenance(command, arguments.device), output)
    rows = all_rows(measured)
    table = Table(*rows[0], title=str(output))
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
