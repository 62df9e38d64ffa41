"""Calls whose arguments are checked against the annotations."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse an argument that the signature does not name (TypeError), or whose value is not of the annotated type."""
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            is_default = value is signature.parameters[name].default
            if name in hints() and not is_default and not _fits(value, hints()[name]):
                raise TypeError(f"{function.__qualname__}: {name} = {value!r} is no {hints()[name]}")
        return function(*args, **kwargs)

    return call


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (float, int)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
