"""Pickles that hold plain data: nothing is called but what a list allows, and nothing is bigger than its bytes."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

from megatron_lpc.outside.files import read_bytes
from megatron_lpc.outside.messages import Malformed, reason

MAX_PICKLE_BYTES = 2**30


def read_pickle(path: Path, allowed: re.Pattern[str]) -> Any:
    """The value of a pickle.

    Args:
        allowed: full names of the classes and functions that it may use.

    Raises:
        Malformed: it cannot be read, or asks for anything else.
    """
    content = read_bytes(path, MAX_PICKLE_BYTES)
    try:
        _check_memo(content)
        unpickler = _PlainUnpickler(content, allowed)
        try:
            return unpickler.load()
        finally:
            unpickler.check_classes()
    except Exception as error:  # What a damaged pickle raises is not bounded.
        raise Malformed(f"{path}: cannot be read ({reason(error)})") from error


def _check_memo(content: bytes) -> None:
    """Refuse a number in the memo beyond all bytes: Python would make a memo of that size."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it wants a memo of {argument:,} entries")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, allowed: re.Pattern[str]) -> None:
        super().__init__(io.BytesIO(content))
        self._allowed = allowed
        self._classes: dict[type, dict[str, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if not self._allowed.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        found = super().find_class(module, name)
        if isinstance(found, type):
            self._classes.setdefault(found, dict(vars(found)))
        return found

    def check_classes(self) -> None:
        """Take back what was set on a class in the place of its instance, and refuse the pickle."""
        changed = [found for found, before in self._classes.items() if dict(vars(found)) != before]
        for found in changed:
            before = self._classes[found]
            for name in set(vars(found)) - set(before):
                delattr(found, name)
            for name, value in before.items():
                if vars(found)[name] is not value:
                    setattr(found, name, value)
        if changed:
            raise pickle.UnpicklingError(f"it changes {changed[0].__name__}")
