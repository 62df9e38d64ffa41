"""Types of options, and how they are written on a command line and in errors."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list[str]: "a list of strings",
    list[int]: "a list of integers",
    dict[str, str]: "NAME: FILE pairs of strings",
}
_PLACEHOLDERS = {
    int: "INTEGER",
    float: "NUMBER",
    str: "TEXT",
    list[str]: "TEXT",
    list[int]: "INTEGER",
    dict[str, str]: "NAME=FILE",
}


def split_optional(kind: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); any other type -> (itself, False)."""
    if get_origin(kind) in (Union, UnionType):
        (inner,) = (part for part in get_args(kind) if part is not NoneType)
        return inner, True
    return kind, False


def is_numeric(kind: Any) -> bool:
    """Whether its values are numbers, or lists of numbers."""
    inner, _ = split_optional(kind)
    return inner in (int, float, list[int])


def takes_many(kind: Any) -> bool:
    """Whether a flag of this type takes any number of values."""
    return get_origin(kind) in (list, dict)


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a Literal; none for any other type."""
    inner, _ = split_optional(kind)
    return get_args(inner) if get_origin(inner) is Literal else ()


def describe(kind: Any) -> str:
    """What the user has to write for this type."""
    inner, optional = split_optional(kind)
    text = "one of " + ", ".join(choices(kind)) if choices(kind) else _NAMES[inner]
    return text + (" or none" if optional else "")


def placeholder(kind: Any) -> str:
    """What stands for a value of this type in the help of its flag."""
    if choices(kind):
        return "{" + ",".join(choices(kind)) + "}"
    inner, _ = split_optional(kind)
    return _PLACEHOLDERS[inner]
