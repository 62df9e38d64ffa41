"""JSON of bounded depth, and files of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_lpc.outside.files import MAX_BYTES, read_text
from megatron_lpc.outside.messages import Malformed, reason
from megatron_lpc.outside.typed import check

MAX_DEPTH = 100
"""Lists and objects in one another. Python itself gives up at about a thousand, in whatever function that happens."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: it is no JSON, or nested too deeply; the message does not name a file.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise Malformed(f"values are nested in one another more than {MAX_DEPTH} times") from error
    except ValueError as error:
        raise Malformed(f"not valid JSON ({reason(error)})") from error
    # Most texts have fewer brackets than may be open at a time, and need no second look.
    if text.count("[") + text.count("{") > MAX_DEPTH and is_too_deep(value):
        raise Malformed(f"values are nested in one another more than {MAX_DEPTH} times")
    return value


def is_too_deep(value: object) -> bool:
    """Whether lists and mappings of a value are in one another more than `MAX_DEPTH` times."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, list | tuple):
                below.extend(item)
            elif isinstance(item, dict):
                below.extend(item.values())
        level = [item for item in below if isinstance(item, list | tuple | dict)]
        if not level:
            return False
    return True


def read_json(path: str | Path, kind: Any = dict, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file, of a type as `check` takes it; an object unless told otherwise.

    Raises:
        Malformed: it cannot be read, is too large, not JSON, or of another type.
    """
    text = read_text(path, max_bytes)
    try:
        value = parse_json(text)
    except Malformed as error:
        raise Malformed(f"{path}: cannot be read ({error})") from error
    check(value, kind, str(path))
    return value


def read_object(path: str | Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """`read_json` of an object with these keys, and perhaps others."""
    found: dict[str, Any] = read_json(path, kinds)
    return found
