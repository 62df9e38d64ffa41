"""Options of an evaluation: those of the run that it evaluates, and how a group's latent is estimated."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, flag_of
from megatron_lpc.config import (
    Config,
    ConfigError,
    all_options,
    options_of_evaluation,
    parse_args,
    with_options,
)


@dataclass(frozen=True, kw_only=True)
class SupportOptions:
    """How a group's latent is estimated."""

    pairs: int = 8
    """Size of each group's support set, whose posterior is the group's latent: the mean of its pairs' posteriors, or
    their product as experts where the model was trained with a `posterior_context`."""
    seed: int = 0
    """Seed of the draw of the support sets."""
    data: str | None = None
    """File or Hub name to draw the support sets from; each data set itself when unset."""


def has_groups(config: Config) -> bool:
    """Whether there are codes and groups to compare."""
    return config.latent.latent_mode == "lpc" and config.data.group_column is not None


def parse_command(argv: Sequence[str]) -> tuple[Config, SupportOptions, Path | None]:
    """Options of the run, of the support sets, and the JSON file to write.

    Options in the run's own file that only training reads are ignored. As flags they are refused, as is every flag
    without effect.

    Args:
        argv: the command line without the program's name.

    Raises:
        UserError: an option is unknown, ill-typed or without effect, or something to evaluate is missing.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(list(argv))
    config = parse_args(rest, prog=parser.prog)
    _refuse_training_flags(rest)
    given = vars(known)
    output = given.pop("output", None)
    support = _support_options(given, config)
    if not config.data.valid_data:
        raise ConfigError("--valid-data: is empty; name at least one data set, NAME=FILE")
    return _with_checkpoint(config), support, output


def _parser() -> ArgumentParser:
    default = SupportOptions()
    parser = ArgumentParser(
        prog="python -m megatron_lpc.evaluate",
        usage="%(prog)s --config RUN/config.yaml [--load RUN] [--valid-data NAME=FILE ...] [--flag value ...]",
        epilog=(
            "Flags of megatron_lpc.train for the model, the data, the objective, the parallel layout and the batch "
            "sizes work here too: see its --help."
        ),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        error_class=ConfigError,
    )
    parser.add_argument(
        "--support-pairs",
        type=int,
        metavar="N",
        help=f"pairs of each group from which its latent is estimated ({default.pairs})",
    )
    parser.add_argument("--support-seed", type=int, metavar="N", help=f"seed of their draw ({default.seed})")
    parser.add_argument(
        "--support-data", metavar="FILE", help="file or Hub name to draw them from (each data set itself)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the report as JSON")
    return parser


def _support_options(given: Mapping[str, Any], config: Config) -> SupportOptions:
    """`given`: values of the flags --support-..., by name."""
    if given and not has_groups(config):
        flag = flag_of(next(iter(given)))
        raise ConfigError(
            f"{flag}: support needs codes and groups; set --latent-mode lpc and --group-column, or drop it"
        )
    support = SupportOptions(**{name.removeprefix("support_"): value for name, value in given.items()})
    if support.pairs < 1:
        raise ConfigError(f"--support-pairs {support.pairs}: must be at least 1")
    return support


def _with_checkpoint(config: Config) -> Config:
    """The same options with the checkpoint to evaluate: `load`, or else the run's own `save`."""
    options = config.checkpoint
    if options.load not in (None, "auto"):
        return config
    if options.save is None:
        raise ConfigError("--load: is unset, and so is `save` in the configuration; name a checkpoint")
    return with_options(config, load=options.save)


def _refuse_training_flags(arguments: Sequence[str]) -> None:
    read = {all_options()[name].flag for name in options_of_evaluation()}
    read.add("--config")
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.replace("--no-", "--", 1) not in read:
            raise ConfigError(f"{flag}: has no effect on an evaluation; drop it")
