"""From what YAML or a flag says to a value of an option's type, strictly: nothing is guessed or rounded."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

from megatron_lpc.config.kinds import choices, describe, split_optional
from megatron_lpc.config.options import nearest
from megatron_lpc.outside.messages import brief, holds_secret
from megatron_lpc.outside.typed import MAX_INTEGER, is_text

_INTEGER = re.compile(r"[+-]?\d+")
_MAX_DIGITS = 20
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class IllTyped(ValueError):
    """A value that is not of the option's type; the message says what was expected and what came."""


def from_yaml(kind: Any, value: Any) -> Any:
    """A value as PyYAML loads it -> a value of type `kind`.

    An integer serves as a float, and so does `5e-7`, which YAML 1.1 (a number needs a dot) reads as a string.

    Raises:
        IllTyped: anything else that is not of that type.
    """
    inner, optional = split_optional(kind)
    if optional and value in (None, "none"):
        return None
    if inner is float:
        return _to_float(kind, value)
    if choices(kind):
        is_right = value in choices(kind)
    elif inner in (list[str], list[int]):
        (item_type,) = get_args(inner)
        is_right = isinstance(value, list) and all(type(item) is item_type for item in value)
    elif inner == dict[str, str]:
        is_right = isinstance(value, dict) and all(type(item) is str for pair in value.items() for item in pair)
    else:
        is_right = type(value) is inner
    if not is_right:
        raise _ill_typed(kind, value)
    _check(value)
    return value


def from_flag(kind: Any, arguments: list[str]) -> Any:
    """The arguments of a flag -> a value of type `kind`: one, or any number for lists and NAME=FILE pairs.

    Raises:
        IllTyped: the arguments are not of that type.
    """
    inner, optional = split_optional(kind)
    for argument in arguments:
        _check(argument)
    if inner == list[str]:
        return arguments
    if inner == list[int]:
        return [_to_int(int, argument) for argument in arguments]
    if inner == dict[str, str]:
        return _to_pairs(arguments)
    (argument,) = arguments
    if optional and argument == "none":
        return None
    if inner is int:
        return _to_int(kind, argument)
    return from_yaml(kind, argument)


def _to_int(kind: Any, argument: str) -> int:
    if not _INTEGER.fullmatch(argument) or len(argument) > _MAX_DIGITS or abs(int(argument)) >= MAX_INTEGER:
        raise _ill_typed(kind, argument)
    return int(argument)


def _to_float(kind: Any, value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) not in (int, float) or not abs(value) <= MAX_INTEGER**4 or not math.isfinite(value):
        raise _ill_typed(kind, value)
    return float(value)


def _check(value: Any) -> None:
    """Raise IllTyped for what no option may hold, whatever its type: all options are saved and printed."""
    values = [*value, *value.values()] if isinstance(value, dict) else value
    for part in values if isinstance(values, list) else [values]:
        if isinstance(part, str) and not is_text(part):
            raise IllTyped(f"{brief(part)} cannot be written in UTF-8, or holds NUL")
        if isinstance(part, str) and holds_secret(part):
            raise IllTyped(
                "holds a token or a password, and options are printed and saved; give it in the environment "
                "(docs/safety.md)"
            )
        if type(part) is int and abs(part) >= MAX_INTEGER:
            raise IllTyped(f"{brief(part)} has more than 64 bits")


def _to_pairs(arguments: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if not (name and equals and file):
            raise IllTyped(f"expected NAME=FILE, got '{argument}'")
        if name in pairs:
            raise IllTyped(f"duplicate name '{name}'")
        pairs[name] = file
    return pairs


def _ill_typed(kind: Any, value: Any) -> IllTyped:
    got = "nothing" if value is None else f"{brief(value)} ({type(value).__name__})"
    hint = nearest(str(value), choices(kind)) if isinstance(value, str) else ""
    return IllTyped(f"expected {describe(kind)}, got {got}{hint}")
