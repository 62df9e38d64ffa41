"""The flags of a run: one per option of the schema, beside `--config`."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser
from megatron_lpc.config.kinds import placeholder, split_optional, takes_many
from megatron_lpc.config.options import ConfigError, Option, all_options, nearest, sections, shown
from megatron_lpc.config.values import IllTyped, from_flag

DEFAULT = "default"
"""As the value of a flag: the default of the option, whatever the file says. A file of this name is `./default`."""

_EPILOG = f"""To unset what the file sets: `--flag {DEFAULT}` is the option's default, `--flag none` unsets an option
that may be unset, a flag that takes several values is empty without any, and `--no-flag` switches off. Options of the
file that flags leave without effect are listed in one warning and ignored."""


def read_flags(arguments: Sequence[str], prog: str) -> tuple[Path | None, dict[str, Any]]:
    """The file that `--config` names, and option name -> value of every option that a flag sets.

    Raises:
        UserError: an unknown flag, or a value that is not of the option's type.
    """
    parser = _build_parser(prog)
    known, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        raise ConfigError(_explain_unknown(unknown[0], parser))
    if len(known.config) > 1:
        raise ConfigError(f"--config: one file, got {len(known.config)}; put the differences into flags")
    values = {
        option.name: _value(option, getattr(known, option.name))
        for option in all_options().values()
        if option.name in known
    }
    return (Path(known.config[0]) if known.config else None), values


def _build_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} --config FILE.yaml [--flag value ...]",
        epilog=_EPILOG,
        error_class=ConfigError,
        allow_abbrev=False,
        # Options absent from the command line stay absent from the namespace: that tells a flag from a default.
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", action="append", default=[], help="YAML file with the sections below"
    )
    for section, section_class in sections().items():
        group = parser.add_argument_group(section, section_class.__doc__)
        for option in all_options().values():
            if option.section == section:
                _add_flag(group, option)
    return parser


def _add_flag(group: argparse._ArgumentGroup, option: Option) -> None:
    default = "none" if option.default in ("", [], {}) else shown(option.default)
    sentence = f"{option.help} Default: {default}."
    if option.range is not None:
        sentence = f"{sentence} Range: {option.range}."
    sentence = sentence.replace("%", "%%")
    kind, _ = split_optional(option.kind)
    if kind is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=sentence)
        return
    group.add_argument(
        option.flag,
        nargs="*" if takes_many(kind) else 1,
        metavar=placeholder(option.kind),
        help=sentence,
    )


def _value(option: Option, given: Any) -> Any:
    """`given` is what argparse keeps: a bool for a switch, a list of arguments for everything else."""
    if isinstance(given, bool):
        return given
    if given == [DEFAULT]:
        return copy.copy(option.default)
    try:
        return from_flag(option.kind, given)
    except IllTyped as error:
        raise ConfigError(f"{option.flag}: {error}") from None


def _explain_unknown(argument: str, parser: ArgumentParser) -> str:
    if not argument.startswith("-"):
        return f"unexpected '{argument}': every option is a flag, and a switch takes no value (--bf16, --no-bf16)"
    flag = argument.partition("=")[0]
    return f"unknown flag '{flag}'{nearest(flag, parser._option_string_actions)}"
