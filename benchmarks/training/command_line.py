"""Flags of the benchmark, and the command that repeats it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.training.providers import DEFAULT_PROVIDERS, PROVIDERS
from benchmarks.training.workload import SHAPES
from megatron_lpc.command_line import ArgumentParser, flag_of


def parse(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags. Raises UserError for flags that would have no effect."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, as --train-data")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json and table.md")
    pairs = "first pairs of the data that are used: a cache of hidden states is filled for all of them (all)"
    parser.add_argument("--pairs", type=int, help=pairs)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model")
    parser.add_argument("--num-layers", type=int, help="layers of the model, where those of the shape do not fit")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the tokenizer that is trained on the data")
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed")
    parser.add_argument("--global-batch-size", type=int, default=32, help="pairs per step")
    parser.add_argument("--micro-batch-size", type=int, default=4, help="pairs of a forward pass, unless packed")
    parser.add_argument("--pack-to", type=int, default=2048, help="tokens of a packed sequence")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt and response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=DEFAULT_PROVIDERS)
    liger = "TRL's use_liger_kernel (GPU): TRL 1.16 takes only layers of Liger-Kernel"
    parser.add_argument("--liger", action="store_true", help=liger)
    arguments = parser.parse_args(argv)
    if arguments.liger and arguments.device != "cuda":
        parser.error("--liger needs --device cuda: Liger's kernels run on GPUs only")
    if arguments.num_layers is not None and arguments.num_layers < 1:
        parser.error(f"--num-layers must be at least 1, got {arguments.num_layers}")
    if arguments.pairs is not None and arguments.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {arguments.pairs}")
    return arguments


def command(arguments: argparse.Namespace) -> str:
    """The command line of these flags, defaults included, without folders of this machine."""
    always = (
        "device",
        "shape",
        "vocab_size",
        "steps",
        "global_batch_size",
        "micro_batch_size",
        "pack_to",
        "max_length",
        "rounds",
    )
    words = [f"python -m benchmarks.training --data {arguments.data.name}"]
    words += [f"{flag_of(name)} {getattr(arguments, name)}" for name in always]
    if arguments.num_layers is not None:
        words.append(f"--num-layers {arguments.num_layers}")
    if arguments.pairs is not None:
        words.append(f"--pairs {arguments.pairs}")
    if arguments.providers != DEFAULT_PROVIDERS:
        words.append(f"--providers {' '.join(arguments.providers)}")
    if arguments.liger:
        words.append("--liger")
    return " ".join(words)
