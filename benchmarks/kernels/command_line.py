"""Flags of the benchmark, and the cases that they ask for."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.kernels import mix_providers, pair_providers
from benchmarks.kernels.clock import CLOCKS
from benchmarks.kernels.mix_case import MixCase
from benchmarks.kernels.pair_case import MODELS, PairCase
from benchmarks.kernels.providers import Case
from megatron_lpc.command_line import ArgumentParser

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def parse(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags. Raises UserError for flags that cannot work."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kernel", required=True)
    pair = kinds.add_parser("pair_logps", help="preference loss on top of an LM head")
    mix = kinds.add_parser("gumbel_mix", help="Gumbel-softmax mixture of the codebook")
    _add_pair_flags(pair)
    _add_mix_flags(mix)
    for kind in (pair, mix):
        _add_common_flags(kind)
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return arguments


def _add_common_flags(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bf16" if device == "cuda" else "fp32"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device, help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default=dtype, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="turns of two runs, the second counts (%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of our threads, for a busy CPU")
    parser.add_argument("--threads", type=int, help="of PyTorch on CPU (default: its own choice)")
    parser.add_argument("--output", type=Path, metavar="DIR/NAME", help="default: benchmarks/results/KERNEL")


def _add_pair_flags(parser: argparse.ArgumentParser) -> None:
    models = f"{', '.join(MODELS)}, or HIDDENxVOCABULARY (default: llama-3-8b)"
    directions = ("training", "scoring")
    providers = pair_providers.PROVIDERS
    parser.add_argument("--model", nargs="+", default=["llama-3-8b"], help=models)
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192], help="N (default: 8192)")
    parser.add_argument("--response", type=int, default=256, help="tokens of a response (default: %(default)s)")
    parser.add_argument("--masked", nargs="+", type=float, default=[0.0], help="share of tokens without loss (0)")
    parser.add_argument("--latents", nargs="+", type=int, default=[1], help="L (default: 1)")
    parser.add_argument("--tp", nargs="+", type=int, default=[1], help="measure one shard of this many (default: 1)")
    parser.add_argument("--direction", nargs="+", choices=directions, default=["training"], help="default: training")
    trained = ("all", "z")
    parser.add_argument("--trained", nargs="+", choices=trained, default=["all"], help="gradients of z alone (all)")
    parser.add_argument("--shared-latents", action="store_true", help="all pairs share the latents: z is [L, 1, H]")
    parser.add_argument("--chunk-size", type=int, help="of our algorithms (default: theirs, 4096 on a GPU)")
    parser.add_argument("--providers", nargs="+", choices=providers, default=list(providers), help="default: all")


def _add_mix_flags(parser: argparse.ArgumentParser) -> None:
    providers = mix_providers.PROVIDERS
    parser.add_argument("--pairs", nargs="+", type=int, default=[16], help="B (default: 16)")
    parser.add_argument("--codes", nargs="+", type=int, default=[64], help="K (default: 64)")
    parser.add_argument("--hidden-size", nargs="+", type=int, default=[4096], help="H (default: 4096)")
    parser.add_argument("--providers", nargs="+", choices=providers, default=list(providers), help="default: all")


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    if arguments.device == "cuda" and arguments.clock == "cpu":
        parser.error("--clock cpu does not see what a GPU takes; use --clock wall")
    if arguments.rounds < 1 or (arguments.threads is not None and arguments.threads < 1):
        parser.error(f"--rounds and --threads must be at least 1, got {arguments.rounds} and {arguments.threads}")


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The crossing of all lists. Raises UserError for sizes that do not fit."""
    made = _mix_cases(arguments) if arguments.kernel == "gumbel_mix" else _pair_cases(arguments)
    for case in made:
        case.check()
    return made


def _mix_cases(arguments: argparse.Namespace) -> list[Case]:
    dtype = DTYPES[arguments.dtype]
    sizes = itertools.product(arguments.pairs, arguments.codes, arguments.hidden_size)
    return [
        MixCase(device=arguments.device, dtype=dtype, pairs=pairs, codes=codes, hidden_size=hidden_size)
        for pairs, codes, hidden_size in sizes
    ]


def _pair_cases(arguments: argparse.Namespace) -> list[Case]:
    lists = ("direction", "trained", "model", "tokens", "masked", "latents", "tp")
    crossed = itertools.product(*(getattr(arguments, name) for name in lists))
    return [
        PairCase(
            device=arguments.device,
            dtype=DTYPES[arguments.dtype],
            response=arguments.response,
            chunk_size=arguments.chunk_size,
            shared=arguments.shared_latents,
            **dict(zip(lists, values, strict=True)),
        )
        for values in crossed
    ]
