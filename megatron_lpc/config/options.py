"""The schema as a flat table: every option with its section, type, default, help sentence and metadata."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any, get_type_hints

from megatron_lpc.command_line import UserError, flag_of
from megatron_lpc.config.kinds import is_numeric
from megatron_lpc.config.metadata import IdleRule, Metadata, Role, metadata_of
from megatron_lpc.config.schema import Config


class ConfigError(UserError, ValueError):
    """The options of a run are wrong; the message is meant for the user."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of one section."""

    section: str
    name: str
    kind: Any
    """Its type annotation, resolved."""
    default: Any
    help: str
    metadata: Metadata

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def role(self) -> Role:
        return self.metadata.role

    @property
    def range(self) -> str | None:
        return self.metadata.range

    @property
    def idle(self) -> tuple[IdleRule, ...]:
        return self.metadata.idle

    def value(self, config: Config) -> Any:
        """Its value in a configuration."""
        return getattr(getattr(config, self.section), self.name)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no candidate resembles `name`."""
    close = get_close_matches(name, list(candidates), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def sections(config_class: type = Config) -> dict[str, type]:
    """Section name -> its dataclass, in the order of the schema."""
    return get_type_hints(config_class)


@cache
def all_options(config_class: type = Config) -> dict[str, Option]:
    """Option name -> option, in the order of the schema.

    Raises:
        TypeError: a section is not a dataclass, two sections share an option's name, or an option has no help
            sentence, no role, or numbers without a range.
    """
    table: dict[str, Option] = {}
    for section, section_class in sections(config_class).items():
        if not is_dataclass(section_class):
            raise TypeError(f"section '{section}' of {config_class.__name__} is not a dataclass")
        for option in _section_options(section, section_class):
            if option.name in table:
                owner = table[option.name].section
                raise TypeError(f"option '{option.name}' is in two sections: '{owner}' and '{section}'")
            table[option.name] = option
    return table


def _section_options(section: str, section_class: Any) -> Iterator[Option]:
    kinds = get_type_hints(section_class)
    sentences = _field_docstrings(section_class)
    for field in fields(section_class):
        what = f"option '{field.name}' of section '{section}'"
        metadata = metadata_of(field)
        if field.name not in sentences:
            raise TypeError(f"{what} has no sentence under it")
        if metadata is None:
            raise TypeError(f"{what} has no role; define it by option(default, role=...)")
        if is_numeric(kinds[field.name]) != (metadata.range is not None):
            raise TypeError(f"{what} must have a range if, and only if, it is numeric")
        yield Option(
            section=section,
            name=field.name,
            kind=kinds[field.name],
            default=field.default if field.default_factory is MISSING else field.default_factory(),
            help=sentences[field.name],
            metadata=metadata,
        )


def options_with_role(*roles: Role) -> list[str]:
    """Names of the options of any of these roles, in the order of the schema."""
    return [option.name for option in all_options().values() if option.role in roles]


def options_of_evaluation() -> list[str]:
    """Names of the options that `megatron_lpc.evaluate` reads, in the order of the schema."""
    return [option.name for option in all_options().values() if option.metadata.evaluation]


def training_only_options(section: str) -> list[str]:
    """Names of the options of a section that `megatron_lpc.evaluate` does not read, in the order of the schema."""
    options = all_options().values()
    return [option.name for option in options if option.section == section and not option.metadata.evaluation]


def options_of_conversion() -> list[str]:
    """Names of the options that a model's config.json or family determines, in the order of the schema."""
    return [option.name for option in all_options().values() if option.metadata.hf_setting or option.metadata.hf_rule]


def hf_settings() -> dict[str, str]:
    """Option name -> the setting of config.json that has the same value."""
    return {
        option.name: option.metadata.hf_setting
        for option in all_options().values()
        if option.metadata.hf_setting is not None
    }


def changed_options(config: Config) -> set[str]:
    """Names of the options whose value differs from the schema's default."""
    return {option.name for option in all_options().values() if option.value(config) != option.default}


def with_options(config: Config, **values: Any) -> Config:
    """The same configuration with other values of some options, given by name.

    Raises:
        KeyError: there is no such option.
    """
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        by_section.setdefault(all_options()[name].section, {})[name] = value
    changed = {section: replace(getattr(config, section), **own) for section, own in by_section.items()}
    return replace(config, **changed)


def with_defaults(config: Config, names: Iterable[str]) -> Config:
    """The same configuration with these options at their defaults.

    Raises:
        KeyError: there is no such option.
    """
    return with_options(config, **{name: copy.copy(all_options()[name].default) for name in names})


def shown(value: object) -> str:
    """A value as the user writes it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field_docstrings(section_class: type) -> dict[str, str]:
    """Strings that stand under the fields of a class; Python itself forgets them."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(section_class))).body
    assert isinstance(node, ast.ClassDef)
    sentences = {}
    for statement, below in pairwise(node.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(below, ast.Expr):
            sentences[statement.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return sentences
