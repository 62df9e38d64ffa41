"""A sweep as data: a YAML file that says what is trained on what, with which options.

    config: examples/recovery/plain.yaml    # model, data, objective, rates
    seeds: [1, 2, 3]
    data:                                   # set of data -> commands that make it in the folder {data}
      2-annotators: [tools/make_preferences.py --output {data}]
    options: {latent_mode: lpc}             # of every run, over those of `config`; `default` unsets one of those
    support: {data: '{data}/valid.jsonl', pairs: 8}     # those of `megatron_lpc.evaluate --support-...`
    report: {disagree: test_disagree, agree: test_agree}    # validation sets: taste, and what all agree on (or null)
    base: {codebook_size: 8}                # of every run, too: the point about which the options are swept
    rows: {plain: {latent_mode: none}}      # runs with several options changed
    sweep: {codebook_size: [2, 8, 32]}      # option -> its values, each a run

`{data}` stands for the folder of the set of data, `{output}` for that of the sweep. A value of `sweep` or `rows` is
what a flag of the option takes; `null` is `none`, and `default` the default of the schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from megatron_lpc.command_line import UserError

Options = dict[str, Any]
BASE = "base"
"""Name of the row with no option changed."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of a file."""

    config: Path
    seeds: list[int]
    data: dict[str, list[str]]
    options: Options
    support: dict[str, Any]
    report: dict[str, Any]
    base: Options
    rows: dict[str, Options]
    sweep: dict[str, list[Any]]

    def all_rows(self) -> dict[str, Options]:
        """Name of a row -> the options in which it differs from the base."""
        swept = {row_name(option, value): {option: value} for option, value in self._points()}
        return {BASE: {}, **self.rows, **swept}

    def _points(self) -> Iterator[tuple[str, Any]]:
        for option, values in self.sweep.items():
            for value in values:
                yield option, value


def row_name(option: str, value: Any) -> str:
    """Name of the row in which one option is changed."""
    return f"{option}={shown(value)}"


def shown(value: Any) -> str:
    """A value as it stands in names and labels."""
    return "none" if value is None else str(value)


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file.

    Raises:
        UserError: it cannot be read, or a key is missing or unknown.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    names = {field.name for field in fields(Sweep)}
    if not isinstance(content, Mapping) or set(content) != names:
        raise UserError(f"{path}: must have the keys {', '.join(sorted(names))}, and no other")
    return Sweep(**{**content, "config": Path(content["config"])})


def filled(value: Any, places: Mapping[str, Path]) -> Any:
    """A value with `{data}` and `{output}` replaced, in lists and mappings too."""
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", str(place))
        return value
    if isinstance(value, list):
        return [filled(item, places) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, places) for key, item in value.items()}
    return value
