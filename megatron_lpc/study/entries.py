"""A YAML file value by value, so that an error names the file and the key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import UserError
from megatron_lpc.config import all_options
from megatron_lpc.config.flags import DEFAULT
from megatron_lpc.config.options import nearest
from megatron_lpc.config.values import IllTyped, from_yaml
from megatron_lpc.outside.messages import Malformed, brief, one_line
from megatron_lpc.outside.yaml_text import read_yaml

Options = dict[str, Any]
"""Option of `megatron_lpc.train` -> its value, as YAML has it."""


@dataclass(frozen=True)
class Entry:
    """One value of a file.

    Args:
        file: the file.
        key: keys down to the value, divided by dots; empty for the whole file.
        value: as PyYAML loads it.
    """

    file: Path
    key: str
    value: Any

    def error(self, message: str) -> UserError:
        """An error of one line."""
        where = f"{self.file}: {self.key}: " if self.key else f"{self.file}: "
        return UserError(where + one_line(message))

    def entries(self) -> dict[str, Entry]:
        """Those of a mapping; none of a missing value."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"must hold 'key: value' lines, got {brief(self.value)}")
        prefix = f"{self.key}." if self.key else ""
        return {str(key): Entry(self.file, f"{prefix}{key}", value) for key, value in self.value.items()}

    def known_entries(self, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Entry]:
        """Those of a mapping that may have these keys, and must have some of them."""
        entries, known = self.entries(), list(known)
        for key, entry in entries.items():
            if key not in known:
                raise entry.error(f"unknown key{nearest(key, known)}; known: {', '.join(known)}")
        for key in required:
            if key not in entries:
                raise self.error(f"the key '{key}' is missing")
        return entries

    def items(self) -> list[Entry]:
        """Those of a list that is not empty."""
        if not isinstance(self.value, list) or not self.value:
            raise self.error(f"must be a list, [...], got {brief(self.value)}")
        return [Entry(self.file, f"{self.key}[{index}]", value) for index, value in enumerate(self.value)]

    def one_or_several(self) -> list[Entry]:
        """The items of a list, or the value by itself."""
        return self.items() if isinstance(self.value, list) else [self]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"must be text, got {brief(self.value)}")
        return self.value

    def whole_number(self, minimum: int) -> int:
        if type(self.value) is not int or self.value < minimum:
            raise self.error(f"must be a whole number of at least {minimum}, got {brief(self.value)}")
        return self.value

    def options(self) -> Options:
        """Options with values of their types, or `default`."""
        return {name: entry.option_value(name) for name, entry in self.entries().items()}

    def option_value(self, name: str) -> Any:
        """The value, if it is one of that option."""
        if name not in all_options():
            raise self.error(f"unknown option '{name}'{nearest(name, all_options())}")
        if name in ("save", "load", "seed"):
            raise self.error(f"a study sets the option '{name}' itself")
        return self.value if self.value == DEFAULT else self.of_kind(all_options()[name].kind)

    def of_kind(self, kind: Any) -> Any:
        """The value, if it is of a type that options have."""
        try:
            from_yaml(kind, self.value)
        except IllTyped as error:
            raise self.error(str(error)) from None
        return self.value


def read_entry(path: Path) -> Entry:
    """The content of a file.

    Raises:
        UserError: it cannot be read, is not YAML, or has a key twice.
    """
    try:
        return Entry(path, "", read_yaml(path))
    except Malformed as error:
        raise UserError(error) from None
