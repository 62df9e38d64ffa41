"""The YAML file of a run: one mapping per section. What is not an option, or not of its option's type, is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megatron_lpc.config.options import ConfigError, Option, all_options, nearest, sections
from megatron_lpc.config.values import IllTyped, from_yaml
from megatron_lpc.outside.messages import Malformed, reason
from megatron_lpc.outside.yaml_text import not_yaml, open_yaml

_TAG = "tag:yaml.org,2002:"
_KEY_TAGS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp")}


def read_yaml(path: Path) -> dict[str, Any]:
    """Option name -> value of every option that the file sets.

    Raises:
        ConfigError: the file cannot be read, or is wrong; names the file and the line.
    """
    try:
        loader = open_yaml(path)
        root = loader.get_single_node()
    except Malformed as error:
        raise ConfigError(error) from None
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(path, error)) from None
    values: dict[str, Any] = {}
    for section in _entries(root, loader, path, "the file"):
        if section.key not in sections():
            raise ConfigError(f"{section.where}: unknown section '{section.key}'{_section_hint(section.key)}")
        for entry in _entries(section.value, loader, path, f"section '{section.key}'"):
            option = _find_option(entry, section.key)
            try:
                values[option.name] = from_yaml(option.kind, loader.construct_object(entry.value, deep=True))
            except (IllTyped, yaml.YAMLError) as error:
                raise ConfigError(f"{entry.where}: key '{section.key}.{option.name}': {reason(error)}") from None
    return values


class _Entry(NamedTuple):
    key: str
    value: yaml.Node
    where: str
    """File and line."""


def _entries(node: yaml.Node | None, loader: yaml.SafeLoader, path: Path, what: str) -> Iterator[_Entry]:
    """Entries of a mapping; an empty file or section has none.

    PyYAML itself would keep the last of two equal keys and drop the line numbers.
    """
    if node is None or node.tag == f"{_TAG}null":
        return
    if not isinstance(node, yaml.MappingNode) or node.tag != f"{_TAG}map":
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {what} must hold 'key: value' lines")
    seen = set()
    for key_node, value_node in node.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _KEY_TAGS:
            raise ConfigError(f"{where}: {what} has a key that is no name")
        key = key_node.value
        if key in seen:
            raise ConfigError(f"{where}: duplicate key '{key}' in {what}")
        seen.add(key)
        yield _Entry(key, value_node, where)


def _find_option(entry: _Entry, section: str) -> Option:
    options = all_options()
    option = options.get(entry.key)
    if option is not None and option.section == section:
        return option
    if option is not None:
        hint = f"; it belongs under '{option.section}:'"
    else:
        own_names = [other.name for other in options.values() if other.section == section]
        hint = nearest(entry.key, own_names) or nearest(entry.key, options)
    raise ConfigError(f"{entry.where}: unknown key '{entry.key}' in section '{section}'{hint}")


def _section_hint(key: str) -> str:
    if key in all_options():
        return f"; it belongs under '{all_options()[key].section}:'"
    return nearest(key, sections())
