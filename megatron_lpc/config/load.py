"""Command line and YAML file -> `Config`: a flag beats the file, the file beats the default.

    python -m megatron_lpc.train --config run.yaml --micro-batch-size 2 --no-bf16 --valid-data all=valid.jsonl

A file has the sections of the schema as its top-level keys. One file serves a run and its baseline: options of the
file that a flag leaves without effect (`--latent-mode none`) are listed in one warning and go back to their defaults.
Where the data tells groups, the defaults of two options are others (`group_defaults`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import warn
from megatron_lpc.config.flags import read_flags
from megatron_lpc.config.group_defaults import with_group_defaults
from megatron_lpc.config.idle import find_idle
from megatron_lpc.config.options import all_options, sections, shown, with_defaults
from megatron_lpc.config.schema import Config
from megatron_lpc.config.yaml_file import read_yaml


def parse_args(arguments: Sequence[str], prog: str = "python -m megatron_lpc.train") -> Config:
    """Options of a run from its command line, without the program's name. `--help` prints every option and exits.

    Raises:
        UserError: an unknown or duplicate key, an unknown flag, an ill-typed value, or a file that cannot be read.
    """
    path, from_flags = read_flags(arguments, prog)
    if path is None:
        return _build_config(from_flags)
    from_file = read_yaml(path)
    config = _build_config(from_file | from_flags)
    idle_in_file = {option.name for option, _ in find_idle(_build_config(from_file))}
    # `validate` refuses options without effect that were typed as flags, or that have none in the file by itself.
    config, ignored = _reset_idle(config, kept={*from_flags, *idle_in_file})
    if ignored:
        warn("\n  ".join([f"{path}: the flags leave these options without effect; they are ignored:", *ignored]))
    return config


def load_yaml(path: str | Path) -> Config:
    """Options of a run from a file only, for instance one that `save_resolved` wrote.

    Raises:
        ConfigError: an unknown or duplicate key, an ill-typed value, or a file that cannot be read.
    """
    return _build_config(read_yaml(Path(path)))


def _reset_idle(config: Config, kept: set[str]) -> tuple[Config, list[str]]:
    """The configuration with options without effect (other than `kept`) at their defaults; a sentence for each."""
    found = [(option, rule) for option, rule in find_idle(config) if option.name not in kept]
    sentences = [
        f"{option.name} = {shown(option.value(config))}: has no effect {rule.reason}" for option, rule in found
    ]
    return with_defaults(config, [option.name for option, _ in found]), sentences


def _build_config(values: dict[str, Any]) -> Config:
    values = with_group_defaults(values)
    by_section: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        by_section[all_options()[name].section][name] = value
    return Config(**{section: section_class(**by_section[section]) for section, section_class in sections().items()})
