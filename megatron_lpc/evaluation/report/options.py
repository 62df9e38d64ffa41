"""Options of a report: those of an evaluation, and what the page shows."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from megatron_lpc.command_line import ArgumentParser
from megatron_lpc.config import Config, ConfigError, parse_args
from megatron_lpc.evaluation.options import (
    SupportOptions,
    add_support_flags,
    refuse_training_flags,
    support_options,
)
from megatron_lpc.evaluation.run_folder import check_reference_is_known, options_file

MapMethod = Literal["pca", "tsne", "umap"]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the page shows, and where it is written."""

    output: Path
    """Folder of `report.html` and `report.json`."""
    source_column: str | None = None
    """Column with the source of a pair; the data set that it is from when unset."""
    map: MapMethod | None = None
    """How prompts are laid out; t-SNE when unset, or PCA where scikit-learn is not installed."""
    examples: int = 3
    """Example pairs of each code."""


def parse_report_command(argv: Sequence[str]) -> tuple[Config, SupportOptions, ReportOptions]:
    """Options of the run, of the support sets, and of the report.

    Without `--config` the options are those that lie beside the checkpoint. What only training reads is ignored in the
    file and refused as a flag.

    Args:
        argv: the command line without the program's name.

    Raises:
        UserError: an option is unknown, ill-typed or without effect, or something is missing.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(list(argv))
    given = vars(known)
    load: Path = given.pop("load")
    file = given.pop("config", None) or options_file(load)
    data = given.pop("data", None)
    if any(flag.partition("=")[0] == "--valid-data" for flag in rest):
        raise ConfigError("--valid-data: has no effect on a report; name its pairs with --data")
    if data is not None:
        rest += ["--valid-data", *(f"{name}={source}" for name, source in _named(data).items())]
    config = parse_args(["--config", str(file), "--load", str(load), *rest], prog=parser.prog)
    refuse_training_flags(rest)
    report, support = _split(given)
    _check(config, file, report)
    return config, support_options(support, config), report


def _parser() -> ArgumentParser:
    default = ReportOptions(output=Path())
    parser = ArgumentParser(
        prog="python -m megatron_lpc.evaluation.report",
        usage="%(prog)s --load RUN [--data [NAME=]FILE ...] --output DIR [--flag value ...]",
        description="Write a trained codebook as a page to look at, DIR/report.html, and its numbers, DIR/report.json.",
        epilog=(
            "Flags of megatron_lpc.train for the model, the data, the objective, the parallel layout and the batch "
            "sizes work here too: see its --help."
        ),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        error_class=ConfigError,
    )
    parser.add_argument(
        "--load", type=Path, required=True, metavar="RUN", help="folder of a run, of a checkpoint, or of an import"
    )
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="its options (those that lie beside it)")
    parser.add_argument(
        "--data", nargs="+", metavar="[NAME=]FILE", help="pairs to look at, files or Hub names (the validation sets)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument(
        "--source-column", metavar="NAME", help="column with the source of a pair (the data set that it is from)"
    )
    parser.add_argument(
        "--map",
        choices=get_args(MapMethod),
        help="how prompts are laid out (tsne, or pca where scikit-learn is not installed)",
    )
    parser.add_argument("--examples", type=int, metavar="N", help=f"example pairs of each code ({default.examples})")
    add_support_flags(parser)
    return parser


def _named(data: Sequence[str]) -> dict[str, str]:
    """Name -> source; the name of a file is that of its data set where none is given."""
    found: dict[str, str] = {}
    for argument in data:
        name, equals, source = argument.partition("=")
        if not equals or "/" in name:
            name, source = Path(argument).name.split(".")[0] or argument, argument
        if name in found:
            raise ConfigError(f"--data: two data sets are called '{name}'; tell them apart with NAME=FILE")
        found[name] = source
    return found


def _split(given: Mapping[str, Any]) -> tuple[ReportOptions, dict[str, Any]]:
    """The options of the report, and the flags --support-... that were given."""
    support = {name: value for name, value in given.items() if name.startswith("support_")}
    return ReportOptions(**{name: value for name, value in given.items() if name not in support}), support


def _check(config: Config, file: Path, options: ReportOptions) -> None:
    mode = config.latent.latent_mode
    if mode != "lpc":
        raise ConfigError(f"--latent-mode {mode}: has no codes to report; load a run of --latent-mode lpc")
    if not config.data.valid_data:
        raise ConfigError("--data: is unset, and the run has no validation set; name the pairs to look at")
    if options.examples < 0:
        raise ConfigError(f"--examples {options.examples}: must not be negative")
    if options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"--output {options.output}: is not a folder")
    check_reference_is_known(config, file)
