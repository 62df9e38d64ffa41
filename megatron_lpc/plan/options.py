"""The command line of a plan: the flags of a training, and what a training need not be told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_lpc.command_line import ArgumentParser, flag_of
from megatron_lpc.config import Config, ConfigError, parse_args, validate, validate_vocab, with_options
from megatron_lpc.plan.gpus import GPUS, Gpu


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan takes beside the options of the training."""

    world_size: int
    """Ranks of the run, one per device."""
    gpu: str = "H100"
    """Name of a GPU in `GPUS`."""
    memory_share: float = 0.9
    """Assumption: the share of a GPU's memory that tensors may take. The rest is for CUDA, NCCL and fragmentation."""
    efficiency: float = 0.5
    """Assumption: the share of its peak FLOP/s that a GPU reaches while it computes."""
    bandwidth_efficiency: float = 0.8
    """Assumption: the share of their bandwidth that HBM, NVLink and the network reach."""
    prompt_length: int | None = None
    """Mean tokens of a prompt, for time; None: those of the longest pairs."""
    response_length: int | None = None
    """Mean tokens of a response, for time; None: those of the longest pairs."""
    search: bool = False
    """Rank parallel layouts in place of planning the one of the options."""
    output: Path | None = None
    """JSON file."""

    @property
    def device(self) -> Gpu:
        return GPUS[self.gpu]


def device_type(config: Config) -> str:
    """`cpu` where the options ask for it, else `cuda`: a plan is made where there is no GPU."""
    return "cpu" if config.parallel.device == "cpu" else "cuda"


def parse(arguments: Sequence[str]) -> tuple[Config, PlanOptions]:
    """Options of the run that is planned, and of its plan.

    Raises:
        UserError: an option is unknown or ill-typed, or the options cannot work with so many ranks.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(list(arguments))
    config = parse_args(rest, prog=parser.prog)
    options = PlanOptions(**vars(known))
    if options.world_size < 1:
        raise ConfigError(f"--world-size {options.world_size}: must be at least 1")
    for name in ("memory_share", "efficiency", "bandwidth_efficiency"):
        share = getattr(options, name)
        if not 0 < share <= 1:
            raise ConfigError(f"{flag_of(name)} {share:g}: must be in (0, 1]")
    for name in ("prompt_length", "response_length"):
        length = getattr(options, name)
        if length is not None and length < 1:
            raise ConfigError(f"{flag_of(name)} {length}: must be at least 1")
    # A search makes its own layouts of the options.
    return config if options.search else resolved(config, options.world_size), options


def resolved(config: Config, world_size: int) -> Config:
    """The options as the run would have them on its devices.

    Raises:
        ConfigError: every broken rule, one line per rule.
    """
    if config.training.bf16 is None:
        config = with_options(config, bf16=device_type(config) == "cuda")
    if config.model.vocab_size is None:
        raise ConfigError("--vocab-size: is unset, and a plan reads no tokenizer; set it")
    validate(config, world_size, device_type(config))
    validate_vocab(config, config.model.vocab_size)
    return config


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m megatron_lpc.plan",
        usage="%(prog)s --config FILE.yaml --world-size N [--gpu NAME] [--search] [--flag value ...]",
        description="Plan a run on any number of GPUs without one: memory of each stage, communication and time.",
        epilog="All flags of megatron_lpc.train work here too: see its --help.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        error_class=ConfigError,
    )
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="ranks of the run, one per GPU")
    parser.add_argument("--gpu", choices=list(GPUS), help=f"({PlanOptions.gpu})")
    parser.add_argument(
        "--memory-share",
        type=float,
        metavar="X",
        help="assumption: share of a GPU's memory that tensors may take; the rest is for CUDA, NCCL and fragmentation "
        f"({PlanOptions.memory_share:g})",
    )
    parser.add_argument(
        "--efficiency",
        type=float,
        metavar="X",
        help=f"assumption: share of its peak FLOP/s that a GPU reaches ({PlanOptions.efficiency:g})",
    )
    parser.add_argument(
        "--bandwidth-efficiency",
        type=float,
        metavar="X",
        help="assumption: share of their bandwidth that HBM, NVLink and the network reach "
        f"({PlanOptions.bandwidth_efficiency:g})",
    )
    for part in ("prompt", "response"):
        parser.add_argument(
            f"--{part}-length",
            type=int,
            metavar="N",
            help=f"mean tokens of a {part}, for time (those of the longest pairs, for which memory is planned)",
        )
    parser.add_argument(
        "--search",
        action="store_true",
        help="rank the parallel layouts that fit by pairs per second, with recomputation and micro-batch size chosen",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the plan as JSON")
    return parser
