"""Values of the types that are expected: what a file holds is compared with an annotation before anything reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from megatron_lpc.outside.messages import Malformed, brief

MAX_INTEGER = 2**63
"""Larger ones fit no file format, array or clock."""
_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    dict: "an object",
    list: "a list",
}


def check(value: object, kind: Any, what: str) -> None:
    """Raise a `Malformed` where a value is not of a type.

    Args:
        kind: `str`, `int`, `float`, `bool`, `None`, `list[X]`, `dict[str, X]`, a union, a Literal, `Any`, or a mapping
            from the keys that an object must have to the types of their values; it may have more keys. Texts can be
            written in UTF-8 and hold no NUL, integers have 64 bits, numbers are finite.
        what: the file, for the message.
    """
    problem = misfit(value, kind)
    if problem is not None:
        raise Malformed(f"{what}: {problem}")


def misfit(value: object, kind: Any, place: str = "it") -> str | None:
    """What is wrong with a value: `options.model must be an object, got 3`; None where it is of the type."""
    origin, parts = get_origin(kind), get_args(kind)
    if isinstance(kind, Mapping):
        return _misfit_of_object(value, kind, place)
    if kind is Any:
        return None
    if origin in (Union, UnionType):
        is_right = any(misfit(value, part) is None for part in parts)
        # Of one that may be missing, what is inside it is more telling.
        inner = [part for part in parts if part is not NoneType]
        if not is_right and len(inner) == 1 and value is not None:
            return misfit(value, inner[0], place)
    elif origin is Literal:
        is_right = any(type(value) is type(part) and value == part for part in parts)
    elif origin is list or origin is dict:
        if isinstance(value, origin):
            return _misfit_of_items(value, origin, parts, place)
        is_right = False
    else:
        is_right = _is_plain(value, kind)
    return None if is_right else f"{place} must be {_named(kind)}, got {brief(value)}"


def _misfit_of_object(value: object, kinds: Mapping[str, Any], place: str) -> str | None:
    if not isinstance(value, dict):
        return f"{place} must be an object, got {brief(value)}"
    for key, kind in kinds.items():
        if key not in value:
            return f"`{_below(place, key)}` is missing"
        problem = misfit(value[key], kind, _below(place, key))
        if problem is not None:
            return problem
    return None


def _misfit_of_items(value: Any, origin: type, parts: tuple[Any, ...], place: str) -> str | None:
    if origin is list:
        problems = (misfit(item, parts[0], f"{place}[{index}]") for index, item in enumerate(value))
    else:
        problems = (
            misfit(key, parts[0], f"a key of {place}") or misfit(item, parts[1], _below(place, str(key)))
            for key, item in value.items()
        )
    return next((problem for problem in problems if problem is not None), None)


def _is_plain(value: object, kind: Any) -> bool:
    if kind in (None, NoneType):
        return value is None
    if kind is str:
        return isinstance(value, str) and is_text(value)
    if kind is int:
        return type(value) is int and abs(value) < MAX_INTEGER
    if kind is float:
        return type(value) in (int, float) and _is_finite(value)  # type: ignore[arg-type]
    return type(value) is kind


def _is_finite(number: float) -> bool:
    return abs(number) < MAX_INTEGER**4 and math.isfinite(number)


def is_text(value: str) -> bool:
    """Whether a text can be written in UTF-8 and handed to the operating system."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _below(place: str, key: str) -> str:
    shown = key[:60]
    return shown if place == "it" else f"{place}.{shown}"


def _named(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_named, parts))
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    return _NAMES.get(origin or kind) or str(getattr(kind, "__name__", kind))
