"""The schema as a flat table: every option with its section, type, default and help sentence."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from megatron_lpc.command_line import UserError
from megatron_lpc.config.schema import Config


class ConfigError(UserError, ValueError):
    """The options of a run are wrong; the message is meant for the person who wrote them."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of one section."""

    section: str
    name: str
    kind: Any
    """Its type annotation, resolved."""
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no candidate resembles `word`."""
    close = get_close_matches(word, list(candidates), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def sections(config_class: type = Config) -> dict[str, type]:
    """Section name -> its dataclass, in the order of the schema."""
    return get_type_hints(config_class)


@cache
def all_options(config_class: type = Config) -> dict[str, Option]:
    """Option name -> option, in the order of the schema.

    Raises:
        TypeError: a section is not a dataclass, two sections share an option's name, or an option has no help sentence.
    """
    table: dict[str, Option] = {}
    for section, section_class in sections(config_class).items():
        if not is_dataclass(section_class):
            raise TypeError(f"section '{section}' of {config_class.__name__} is not a dataclass")
        kinds, sentences = get_type_hints(section_class), _field_docstrings(section_class)
        for f in fields(section_class):
            if f.name in table:
                raise TypeError(f"option '{f.name}' is in two sections: '{table[f.name].section}' and '{section}'")
            if f.name not in sentences:
                raise TypeError(f"option '{f.name}' of section '{section}' has no sentence under it")
            default = f.default if f.default_factory is MISSING else f.default_factory()
            table[f.name] = Option(
                section=section, name=f.name, kind=kinds[f.name], default=default, help=sentences[f.name]
            )
    return table


def changed_options(config: Config) -> set[str]:
    """Names of the options whose value differs from the schema's default."""
    return {
        option.name
        for option in all_options().values()
        if getattr(getattr(config, option.section), option.name) != option.default
    }


def with_options(config: Config, **values: Any) -> Config:
    """The same configuration with other values of some options, given by name.

    Raises:
        KeyError: there is no such option.
    """
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        by_section.setdefault(all_options()[name].section, {})[name] = value
    return replace(config, **{section: replace(getattr(config, section), **own) for section, own in by_section.items()})


def shown(value: object) -> str:
    """A value as a person writes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _field_docstrings(section_class: type) -> dict[str, str]:
    """Strings that stand under the fields of a class; Python itself forgets them."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(section_class))).body
    assert isinstance(node, ast.ClassDef)
    sentences = {}
    for statement, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
        ):
            sentences[statement.target.id] = inspect.cleandoc(ast.literal_eval(below.value))
    return sentences
