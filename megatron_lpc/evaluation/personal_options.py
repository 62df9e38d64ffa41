"""Options of `megatron_lpc.personalize`: those of the run, and what is estimated, written and selected."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser
from megatron_lpc.config import Config, ConfigError, parse_args, with_options
from megatron_lpc.evaluation.evidence import PosteriorName
from megatron_lpc.evaluation.options import refuse_training_flags, with_checkpoint
from megatron_lpc.evaluation.run_folder import check_reference_is_known, options_file
from megatron_lpc.evaluation.saved_latents import check_has_codes
from megatron_lpc.evaluation.selection import MOST_SELECTED

_POSTERIORS: tuple[PosteriorName, ...] = ("support", "support_exact")


@dataclass(frozen=True, kw_only=True)
class PersonalOptions:
    """What to estimate, from what."""

    pairs: str | None
    """File or Hub name of the pairs that the annotator has labelled; None for none yet."""
    posterior: PosteriorName
    output: Path | None
    """File to write the latent to."""
    pool: str | None
    """File or Hub name of pairs without labels: which of the two responses is `chosen` does not matter."""
    select: int | None
    """How many of the pool to select."""
    selected: Path | None
    """JSON lines to write them to."""


def parse_personal_command(argv: Sequence[str]) -> tuple[Config, PersonalOptions]:
    """Options of the run and of the program.

    Without `--config` the options of the run are those that lie beside the checkpoint.

    Args:
        argv: the command line without the program's name.

    Raises:
        UserError: an option is unknown, ill-typed, without effect or missing.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(list(argv))
    refuse_training_flags(rest)
    rest, file = _with_config_of_run(rest)
    config = with_checkpoint(parse_args(rest, prog=parser.prog))
    if file is not None:
        check_reference_is_known(config, file)
    check_has_codes(config.latent.latent_mode, "--output")
    _check(known)
    is_exact = config.latent.latent_inference == "exact"
    options = PersonalOptions(
        pairs=known.pairs,
        posterior=known.posterior or ("support_exact" if is_exact else "support"),
        output=known.output,
        pool=known.pool,
        select=known.select,
        selected=known.selected,
    )
    sources = [source for source in (options.pairs, options.pool) if source is not None]
    # What one annotator labels has no groups, and is too little to keep hidden states of.
    own: dict[str, Any] = {"train_data": sources, "valid_data": {}, "group_column": None, "cache_hidden_states": None}
    return with_options(config, **own), options


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m megatron_lpc.personalize",
        usage="%(prog)s --load RUN --pairs FILE --output FILE.safetensors [--select N --pool FILE] [--flag value ...]",
        description="The latent of an annotator, from a few labelled pairs.",
        epilog=(
            "Flags of megatron_lpc.train for the model, the data, the objective, the parallel layout and the batch "
            "sizes work here too, --config among them (default: the options that lie beside RUN)."
        ),
        allow_abbrev=False,
        error_class=ConfigError,
    )
    parser.add_argument("--pairs", metavar="FILE", help="pairs that the annotator has labelled, as for training")
    parser.add_argument(
        "--posterior",
        choices=_POSTERIORS,
        help="support: the mean of the pairs' posteriors, or their product for a model with a posterior_context; "
        "support_exact: by the likelihoods of all labels (default: support_exact for exact inference, else support)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.safetensors", help="write the latent")
    parser.add_argument("--pool", metavar="FILE", help="pairs without labels; chosen and rejected in any order")
    parser.add_argument(
        "--select",
        type=int,
        metavar="N",
        help=f"the N pairs of the pool whose labels would tell most of the annotator, 1 to {MOST_SELECTED}",
    )
    parser.add_argument("--selected", type=Path, metavar="FILE.jsonl", help="write these pairs")
    return parser


def _check(known: argparse.Namespace) -> None:
    """Refuse what is missing, or would have no effect."""
    if (known.select is None) != (known.pool is None):
        raise ConfigError("--select and --pool: select from a pool of pairs; give both, or neither")
    if known.select is not None and not 1 <= known.select <= MOST_SELECTED:
        raise ConfigError(f"--select {known.select}: must be 1 to {MOST_SELECTED}; label these, then select again")
    if known.selected is not None and known.select is None:
        raise ConfigError("--selected: has no effect without --select")
    if known.pairs is None:
        if known.select is None:
            raise ConfigError("--pairs: is missing; name the pairs that the annotator has labelled")
        for flag in ("output", "posterior"):
            if getattr(known, flag) is not None:
                raise ConfigError(f"--{flag}: needs --pairs, from which the latent is estimated")
    if known.output is not None and known.output.suffix != ".safetensors":
        raise ConfigError(f"--output {known.output}: must end in .safetensors")


def _with_config_of_run(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The flags of the run, with the `--config` that belongs to `--load` where they name none, and its file."""
    finder = ArgumentParser(add_help=False, allow_abbrev=False, error_class=ConfigError)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--load", type=Path)
    found, _ = finder.parse_known_args(list(arguments))
    if found.config is not None or found.load is None:
        return list(arguments), found.config
    file = options_file(found.load)
    return ["--config", str(file), *arguments], file
