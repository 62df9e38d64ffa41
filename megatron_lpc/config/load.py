"""Command line and YAML file -> `Config`: a flag beats the file, the file beats the default.

    python -m megatron_lpc.train --config run.yaml --micro-batch-size 2 --no-bf16 --valid-data all=valid.jsonl

A file has the sections of the schema as its top-level keys. Whatever is not an option, or not of an option's type, is an error.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from megatron_lpc.config.kinds import placeholder, split_optional, takes_many
from megatron_lpc.config.options import ConfigError, Option, all_options, nearest, sections
from megatron_lpc.config.schema import Config
from megatron_lpc.config.values import IllTyped, from_flag, from_yaml


def parse_args(argv: Sequence[str], prog: str = "python -m megatron_lpc.train") -> Config:
    """Options of a run from its command line, without the program's name. `--help` prints every option and exits.

    Raises:
        ConfigError: an unknown or repeated key, an unknown flag, an ill-typed value, or a file that cannot be read.
    """
    parser = _build_parser(prog)
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise ConfigError(_explain_unknown(unknown[0], parser))
    if len(known.config) > 1:
        raise ConfigError(f"--config: one file, got {len(known.config)}; put the differences into flags")
    values = _read_yaml(Path(known.config[0])) if known.config else {}
    for option in all_options().values():
        if option.name in known:
            values[option.name] = _flag_value(option, getattr(known, option.name))
    return _build_config(values)


def load_yaml(path: str | Path) -> Config:
    """Options of a run from a file alone, for instance one that `save_resolved` wrote.

    Raises:
        ConfigError: as `parse_args`.
    """
    return _build_config(_read_yaml(Path(path)))


class _Parser(argparse.ArgumentParser):
    """Reports its errors as `ConfigError`, as the rest of this module does."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _build_parser(prog: str) -> argparse.ArgumentParser:
    # Options absent from the command line stay absent from the namespace: that is how a flag is told from a default.
    usage = f"{prog} --config FILE.yaml [--flag value ...]"
    parser = _Parser(prog=prog, usage=usage, allow_abbrev=False, argument_default=argparse.SUPPRESS)
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
    kind, _ = split_optional(option.kind)
    sentence = option.help.replace("%", "%%")
    if kind is bool:
        group.add_argument(
            option.flag,
            action=argparse.BooleanOptionalAction,
            help=f"{sentence} Default: {str(option.default).lower()}.",
        )
        return
    many = takes_many(kind)
    default = "none" if option.default in (None, "", [], {}) else option.default
    group.add_argument(
        option.flag, nargs="*" if many else 1, metavar=placeholder(option.kind), help=f"{sentence} Default: {default}."
    )


def _flag_value(option: Option, given: Any) -> Any:
    if isinstance(given, bool):
        return given
    try:
        return from_flag(option.kind, given)
    except IllTyped as error:
        raise ConfigError(f"{option.flag}: {error}") from None


def _explain_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unexpected '{word}': every option is a flag, and a switch takes no value (--bf16, --no-bf16)"
    word = word.partition("=")[0]
    return f"unknown flag '{word}'{nearest(word, parser._option_string_actions)}"


def _read_yaml(path: Path) -> dict[str, Any]:
    """Option name -> value of every option that the file sets."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    options, values = all_options(), {}
    for section, section_node, where in _entries(root, loader, str(path), "the file"):
        if section not in sections():
            hint = (
                f"; it belongs under '{options[section].section}:'"
                if section in options
                else nearest(section, sections())
            )
            raise ConfigError(f"{where}: unknown section '{section}'{hint}")
        for name, node, line in _entries(section_node, loader, str(path), f"section '{section}'"):
            option = options.get(name)
            if option is None or option.section != section:
                names = [other.name for other in options.values() if other.section == section]
                hint = (
                    f"; it belongs under '{option.section}:'"
                    if option
                    else nearest(name, names) or nearest(name, options)
                )
                raise ConfigError(f"{line}: unknown key '{name}' in section '{section}'{hint}")
            try:
                values[name] = from_yaml(option.kind, loader.construct_object(node, deep=True))
            except (IllTyped, yaml.YAMLError) as error:
                raise ConfigError(f"{line}: key '{section}.{name}': {error}") from None
    return values


def _entries(
    node: yaml.Node | None, loader: yaml.SafeLoader, path: str, what: str
) -> Iterator[tuple[str, yaml.Node, str]]:
    """(key, node of the value, file and line) of a mapping; an empty file or section has none. PyYAML itself would keep the last
    of two equal keys and drop the line numbers."""
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {what} must hold 'key: value' lines")
    seen = set()
    for key_node, value_node in node.value:
        key, where = str(loader.construct_object(key_node, deep=True)), f"{path}:{key_node.start_mark.line + 1}"
        if key in seen:
            raise ConfigError(f"{where}: duplicate key '{key}' in {what}")
        seen.add(key)
        yield key, value_node, where


def _build_config(values: dict[str, Any]) -> Config:
    by_section: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        by_section[all_options()[name].section][name] = value
    return Config(**{section: section_class(**by_section[section]) for section, section_class in sections().items()})
