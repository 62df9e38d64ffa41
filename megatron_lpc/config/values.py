"""From what YAML or a flag says to a value of an option's type, strictly: nothing is guessed or rounded."""

from __future__ import annotations

import math
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from megatron_lpc.config.options import nearest

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class IllTyped(ValueError):
    """A value that is not of the option's type; the message says what was expected and what came."""


def split_optional(kind: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); any other type -> (itself, False)."""
    if get_origin(kind) in (Union, UnionType):
        (inner,) = (part for part in get_args(kind) if part is not NoneType)
        return inner, True
    return kind, False


def describe(kind: Any) -> str:
    """What a person has to write for this type."""
    inner, optional = split_optional(kind)
    if get_origin(inner) is Literal:
        text = "one of " + ", ".join(get_args(inner))
    else:
        text = {
            bool: "true or false",
            int: "an integer",
            float: "a number",
            str: "a string",
            list[str]: "a list of strings",
            dict[str, str]: "NAME: FILE pairs of strings",
        }[inner]
    return text + (" or none" if optional else "")


def placeholder(kind: Any) -> str:
    """What stands for a value of this type in the help of its flag."""
    inner, _ = split_optional(kind)
    if get_origin(inner) is Literal:
        return "{" + ",".join(get_args(inner)) + "}"
    return {int: "INTEGER", float: "NUMBER", str: "TEXT", list[str]: "TEXT", dict[str, str]: "NAME=FILE"}[inner]


def from_yaml(kind: Any, value: Any) -> Any:
    """A value as PyYAML loads it -> a value of type `kind`.

    An integer serves as a float, and so does `5e-7`, which YAML 1.1 (a number needs a dot) reads as a string.

    Raises:
        IllTyped: anything else that is not of that type.
    """
    inner, optional = split_optional(kind)
    if value is None or value == "none":
        if optional:
            return None
        if value is None:
            raise _ill_typed(kind, value)
    if inner is float:
        return _to_float(kind, value)
    if get_origin(inner) is Literal:
        if value not in get_args(inner):
            raise _ill_typed(kind, value)
        return value
    if inner == list[str]:
        if not isinstance(value, list) or not all(type(item) is str for item in value):
            raise _ill_typed(kind, value)
        return value
    if inner == dict[str, str]:
        if not isinstance(value, dict) or not all(type(item) is str for pair in value.items() for item in pair):
            raise _ill_typed(kind, value)
        return value
    if type(value) is not inner:
        raise _ill_typed(kind, value)
    return value


def from_flag(kind: Any, words: list[str]) -> Any:
    """The words after a flag -> a value of type `kind`: one word, or any number for lists and NAME=FILE pairs.

    Raises:
        IllTyped: the words are not of that type.
    """
    inner, optional = split_optional(kind)
    if inner == list[str]:
        return words
    if inner == dict[str, str]:
        return _to_pairs(words)
    (word,) = words
    if optional and word == "none":
        return None
    if inner is int:
        if not _INTEGER.fullmatch(word):
            raise _ill_typed(kind, word)
        return int(word)
    return from_yaml(kind, word)


def _to_float(kind: Any, value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _ill_typed(kind, value)
    return float(value)


def _to_pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not (name and equals and file):
            raise IllTyped(f"expected NAME=FILE, got '{word}'")
        if name in pairs:
            raise IllTyped(f"the name '{name}' is given twice")
        pairs[name] = file
    return pairs


def _ill_typed(kind: Any, value: Any) -> IllTyped:
    got = "nothing" if value is None else f"{value!r} ({type(value).__name__})"
    inner, _ = split_optional(kind)
    hint = nearest(str(value), get_args(inner)) if get_origin(inner) is Literal else ""
    return IllTyped(f"expected {describe(kind)}, got {got}{hint}")
