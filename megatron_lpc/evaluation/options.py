"""Options of an evaluation: those of the run that it evaluates, and how a group's latent is estimated."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, flag_of
from megatron_lpc.config import (
    Config,
    ConfigError,
    all_options,
    options_of_evaluation,
    parse_args,
    training_only_options,
    with_defaults,
    with_options,
)

_OF_FITS = ("support_steps", "support_lr")


@dataclass(frozen=True, kw_only=True)
class SupportOptions:
    """How a group's latent is estimated."""

    pairs: int = 8
    """Size of each group's support set, whose posterior is the group's latent: the mean of its pairs' posteriors, or
    their product as experts where the model was trained with a `posterior_context`. With `latent_mode: embedding` a
    vector is fitted to it; with `gaussian` it has the mean of its pairs' means."""
    seed: int = 0
    """Seed of the draw of the support sets."""
    data: str | None = None
    """File or Hub name to draw the support sets from; each data set itself when unset."""
    steps: int = 50
    """With `latent_mode: embedding`, steps of Adam that fit a group's vector to its support set."""
    lr: float = 0.005
    """With `latent_mode: embedding`, their learning rate at hidden size 256, scaled as `codebook_lr`."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command line of an evaluation."""

    config: Config
    """Options of the run."""
    support: SupportOptions
    latents: tuple[Path, ...]
    """Files of saved latents to evaluate under."""
    output: Path | None
    """JSON file to write."""


def has_groups(config: Config) -> bool:
    """Whether there are groups, and a latent that can be estimated for one."""
    return config.latent.latent_mode in ("lpc", "embedding", "gaussian") and config.data.group_column is not None


def without_training(config: Config) -> Config:
    """The options of a run, as they are for the evaluation of its checkpoint on its `valid_data`."""
    # Validation asks for the training data of a run. An evaluation has none but what it evaluates.
    config = with_options(config, train_data=list(config.data.valid_data.values()))
    # Profiling belongs to the run: its ranks and its device need not be there.
    return with_defaults(config, training_only_options("logging"))


def support_settings(config: Config, support: SupportOptions) -> dict[str, Any] | None:
    """Those of the options that count in this evaluation, by name; None without support."""
    if not has_groups(config):
        return None
    counts = asdict(support)
    if config.latent.latent_mode != "embedding":
        del counts["steps"], counts["lr"]
    return counts


def parse_command(argv: Sequence[str]) -> Command:
    """The command line of an evaluation, checked.

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
    refuse_training_flags(rest)
    given = vars(known)
    output, latents = given.pop("output", None), given.pop("latent", [])
    support = support_options(given, config)
    if not config.data.valid_data:
        raise ConfigError("--valid-data: is empty; name at least one data set, NAME=FILE")
    return Command(config=with_checkpoint(config), support=support, latents=tuple(latents), output=output)


def _parser() -> ArgumentParser:
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
    add_support_flags(parser)
    parser.add_argument(
        "--latent",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="latents that megatron_lpc.personalize wrote: all pairs are scored under each of them too",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the report as JSON")
    return parser


def add_support_flags(parser: ArgumentParser) -> None:
    """The flags --support-... of a program that estimates groups' latents."""
    default = SupportOptions()
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
    parser.add_argument(
        "--support-steps",
        type=int,
        metavar="N",
        help=f"with --latent-mode embedding: steps that fit a group's vector to its support set ({default.steps})",
    )
    parser.add_argument("--support-lr", type=float, metavar="X", help=f"their learning rate ({default.lr:g})")


def support_options(given: Mapping[str, Any], config: Config) -> SupportOptions:
    """What the flags --support-... say.

    Args:
        given: their values, by name.

    Raises:
        ConfigError: one is without effect, or out of its range.
    """
    if given and not has_groups(config):
        flag = flag_of(next(iter(given)))
        raise ConfigError(
            f"{flag}: support needs groups, and a latent that can be estimated for one; set --group-column and "
            "--latent-mode lpc, embedding or gaussian, or drop it"
        )
    if config.latent.latent_mode != "embedding" and (fits := [name for name in given if name in _OF_FITS]):
        raise ConfigError(
            f"{flag_of(fits[0])}: is of the vectors that --latent-mode embedding fits to support sets; drop it"
        )
    support = SupportOptions(**{name.removeprefix("support_"): value for name, value in given.items()})
    if support.pairs < 1:
        raise ConfigError(f"--support-pairs {support.pairs}: must be at least 1")
    if support.steps < 1:
        raise ConfigError(f"--support-steps {support.steps}: must be at least 1")
    if not support.lr > 0:
        raise ConfigError(f"--support-lr {support.lr:g}: must be above 0")
    return support


def with_checkpoint(config: Config) -> Config:
    """The same options with the checkpoint to evaluate: `load`, or else the run's own `save`."""
    options = config.checkpoint
    if options.load not in (None, "auto"):
        return config
    if options.save is None:
        raise ConfigError("--load: is unset, and so is `save` in the configuration; name a checkpoint")
    return with_options(config, load=options.save)


def refuse_training_flags(arguments: Sequence[str]) -> None:
    """Refuse flags of the run that no evaluation reads.

    Raises:
        ConfigError: naming the flag.
    """
    read = {all_options()[name].flag for name in options_of_evaluation()}
    read.add("--config")
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.replace("--no-", "--", 1) not in read:
            raise ConfigError(f"{flag}: has no effect on an evaluation; drop it")
