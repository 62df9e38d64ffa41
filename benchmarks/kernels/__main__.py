"""Time and extra memory of the kernels and of what does their job elsewhere, every provider in turn in one run.

    python -m benchmarks.kernels pair_logps --model llama-3-8b qwen-3-8b --latents 1 2 --tp 1 8    # on a GPU
    python -m benchmarks.kernels pair_logps --device cpu --dtype fp32 --model 512x32000 --rows 2048 \\
        --masked 0 0.5 --latents 1 2 --providers pytorch pairwise                                       # on a CPU
    python -m benchmarks.kernels gumbel_mix --codes 64 --width 4096 --pairs 64

Lists are crossed with each other. Writes DIR/NAME.csv, .md and .png (`--output DIR/NAME`). Times are medians, with the 20th and 80th
percentile; rates are nominal work over the median: 6 N V H operations for training, 2 N V H for scoring, of the rows with loss and one
latent, whatever a provider really does (`gumbel_mix`: the bytes that have to be moved once). Their share is that of the vendor's product
(of a large copy) of the same run. Extra memory is the highest point of a step above its inputs, gradients included; on CPU it is the
resident memory of a fresh process. A provider that does not run is named with the reason. With `--tp` the head is one rank's shard and
nothing is communicated.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.kernels import mix_case, pair_providers
from benchmarks.kernels.measure import CLOCKS, Case, copy_ceiling, measure, product_ceiling
from benchmarks.kernels.mix_case import MixCase
from benchmarks.kernels.pair_case import MODELS, PairCase
from benchmarks.kernels.report import Measured, provenance, write_csv, write_markdown, write_picture

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def cases(arguments: Any) -> list[Case]:
    """The crossing of all lists. Raises ValueError for sizes that do not fit."""
    shared = {"device": arguments.device, "dtype": DTYPES[arguments.dtype]}
    made: list[Case]
    if arguments.kernel == "gumbel_mix":
        sizes = itertools.product(arguments.pairs, arguments.codes, arguments.width)
        made = [MixCase(**shared, pairs=pairs, codes=codes, width=width) for pairs, codes, width in sizes]
    else:
        lists = itertools.product(
            arguments.direction, arguments.model, arguments.rows, arguments.masked, arguments.latents, arguments.tp
        )
        fixed = {**shared, "response": arguments.response, "chunk_size": arguments.chunk_size}
        made = [
            PairCase(**fixed, direction=direction, model=model, rows=rows, masked=masked, latents=latents, tp=tp)
            for direction, model, rows, masked, latents, tp in lists
        ]
    for case in made:
        case.check()
    return made


def run(case: Case, arguments: Any, copy: float) -> Measured:
    """Measure one case; `copy` is the ceiling of those that move bytes."""
    how = arguments.rounds, arguments.clock
    results = measure(case, arguments.providers, *how)
    return Measured(case, results, product_ceiling(case, *how) if isinstance(case, PairCase) else copy)


def parse(argv: Sequence[str] | None) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--device", choices=("cuda", "cpu"), default=device, help="default: %(default)s")
    shared.add_argument(
        "--dtype", choices=DTYPES, default="bf16" if device == "cuda" else "fp32", help="default: %(default)s"
    )
    shared.add_argument(
        "--rounds", type=int, default=20, help="turns of two runs each; the second counts (default: %(default)s)"
    )
    shared.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: time of our threads, on a busy CPU (default: wall)"
    )
    shared.add_argument("--threads", type=int, help="of PyTorch on CPU (default: its own choice)")
    shared.add_argument("--output", type=Path, metavar="DIR/NAME", help="default: benchmarks/results/KERNEL")
    kinds = parser.add_subparsers(dest="kernel", required=True)

    pair = kinds.add_parser("pair_logps", parents=[shared], help="preference loss on top of an LM head")
    sizes = ", ".join(MODELS)
    pair.add_argument(
        "--model", nargs="+", default=["llama-3-8b"], help=f"{sizes}, or HIDDENxVOCABULARY (default: llama-3-8b)"
    )
    pair.add_argument("--rows", nargs="+", type=int, default=[8192], help="N (default: 8192)")
    pair.add_argument("--response", type=int, default=256, help="rows of a response (default: %(default)s)")
    pair.add_argument("--masked", nargs="+", type=float, default=[0.0], help="share of rows without loss (default: 0)")
    pair.add_argument("--latents", nargs="+", type=int, default=[1], help="L (default: 1)")
    pair.add_argument("--tp", nargs="+", type=int, default=[1], help="measure one shard of this many (default: 1)")
    pair.add_argument(
        "--direction", nargs="+", choices=("training", "scoring"), default=["training"], help="default: training"
    )
    pair.add_argument("--chunk-size", type=int, default=1024, help="of our schedules (default: %(default)s)")
    pair.add_argument(
        "--providers",
        nargs="+",
        choices=pair_providers.PROVIDERS,
        default=list(pair_providers.PROVIDERS),
        help="default: all",
    )

    mix = kinds.add_parser("gumbel_mix", parents=[shared], help="Gumbel-softmax mixture of the codebook")
    mix.add_argument("--pairs", nargs="+", type=int, default=[16], help="B (default: 16)")
    mix.add_argument("--codes", nargs="+", type=int, default=[64], help="K (default: 64)")
    mix.add_argument("--width", nargs="+", type=int, default=[4096], help="H (default: 4096)")
    mix.add_argument(
        "--providers", nargs="+", choices=mix_case.PROVIDERS, default=list(mix_case.PROVIDERS), help="default: all"
    )

    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and device == "cpu":
        parser.error("--device cuda: PyTorch finds no CUDA device")
    if arguments.device == "cuda" and arguments.clock == "cpu":
        parser.error("--clock cpu does not see what a GPU takes; use --clock wall")
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        parser.error(f"--rounds and --threads must be at least 1, got {arguments.rounds} and {arguments.threads}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    output = arguments.output or Path("benchmarks/results") / arguments.kernel
    try:
        wanted = cases(arguments)
    except ValueError as error:
        print(f"benchmark_kernels: {error}", file=sys.stderr)
        return 1
    copy = (
        copy_ceiling(arguments.device, arguments.rounds, arguments.clock) if arguments.kernel == "gumbel_mix" else 0.0
    )
    command = shlex.join(["python", "-m", "benchmarks.kernels", *(sys.argv[1:] if argv is None else argv)])
    origin = provenance(command, arguments.device)
    measured: list[Measured] = []
    for number, case in enumerate(wanted, start=1):
        print(
            f"{number} of {len(wanted)}: {' '.join(f'{key}={value}' for key, value in case.labels().items())}",
            file=sys.stderr,
        )
        measured.append(run(case, arguments, copy))
        # After every case: a long run that is stopped keeps what it has.
        write_csv(output.with_suffix(".csv"), measured, origin)
        write_markdown(output.with_suffix(".md"), measured, origin)
        write_picture(output.with_suffix(".png"), measured)
    rows = [row for each in measured for row in each.rows()]
    table = Table(*rows[0], title=str(output))
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
