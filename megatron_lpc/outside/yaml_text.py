"""YAML of bounded size, depth and aliases: PyYAML's safe loader, which would repeat what an alias names without end."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from megatron_lpc.outside.files import read_text
from megatron_lpc.outside.messages import Malformed, brief, cleaned, reason

MAX_YAML_BYTES = 2**20
MAX_VALUES = 100_000
"""With aliases written out."""
MAX_DEPTH = 50


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds; an error of a value names its line, and no key stands twice.

    Raises:
        yaml.YAMLError: there are too many values, they are nested too deeply, one refers to itself or does not fit its
            tag, or a mapping has a key twice.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        """Node, by its identity -> the values in it, those of aliases included."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"values are nested more than {MAX_DEPTH} times", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return node
        if is_alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias refers to what it stands in", problem_mark=mark)
        if not is_alias:
            self._sizes[id(node)] = self._size(node)
        if self._sizes[id(node)] > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"there are more than {MAX_VALUES:,} values, aliases written out", problem_mark=mark
            )
        return node

    def _size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self._sizes[id(item)] for item in node.value)
        if isinstance(node, yaml.MappingNode):
            return 1 + sum(self._sizes[id(item)] for pair in node.value for item in pair)
        return 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, yaml.YAMLError):
                raise
            # A number with thousands of digits, a date without such a day, a tag that does not fit.
            problem = f"{brief(node.value)} is no value of {node.tag.removeprefix('tag:yaml.org,2002:')}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem=f"{brief(key)} is no key", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key '{key}'", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def open_yaml(path: Path) -> BoundedLoader:
    """A loader of the text in a file.

    Raises:
        Malformed: it cannot be read, is too large, or has characters that YAML forbids.
    """
    try:
        return BoundedLoader(read_text(path, MAX_YAML_BYTES))
    except yaml.YAMLError as error:
        raise not_yaml(path, error) from error


def not_yaml(path: Path, error: yaml.YAMLError) -> Malformed:
    """What PyYAML says of a file, in one line."""
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f":{mark.line + 1}"
    return Malformed(f"{path}{line}: not YAML: {cleaned(getattr(error, 'problem', None) or reason(error), 300)}")


def read_yaml(path: Path) -> Any:
    """The value in a YAML file.

    Raises:
        Malformed: as `BoundedLoader` and `open_yaml`.
    """
    loader = open_yaml(path)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise not_yaml(path, error) from error
