"""Rows of a study: those that are named, those of a grid, and those of a sweep."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from megatron_lpc.config import options_of_evaluation, shown
from megatron_lpc.evaluation.options import SupportOptions
from megatron_lpc.study.entries import Entry, Options

_MAX_GRID_ROWS = 10_000
BASE = "base"
"""Name of the row with no option changed."""


Support = dict[str, Any]
"""What is given of `SupportOptions`, `pairs` as a list."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs that differ in seed and data only."""

    name: str
    options: Options = field(default_factory=dict)
    """Those in which they differ from the study's."""
    place: Mapping[str, str] = field(default_factory=dict)
    """In the grid: axis -> its value."""
    support: Support = field(default_factory=dict)
    evaluate: Options = field(default_factory=dict)
    command: tuple[str, ...] | None = None
    """Of a rule: arguments of `python`."""

    @property
    def is_constant(self) -> bool:
        """Whether all seeds give the same."""
        return self.command is not None and not any("{seed}" in part for part in self.command)


def read_rows(named: Entry, crossed: Entry, sweep: Mapping[str, list[Any]]) -> dict[str, Row]:
    """All rows by name: those of `rows`, `grid` and `sweep`.

    Raises:
        UserError: one is ill-typed, or two have one name.
    """
    rows = [_row(name, of) for name, of in named.entries().items()]
    grid = list(_grid_rows(crossed))
    swept = [
        Row(name=f"{name}={shown(value)}", options={name: value}) for name, values in sweep.items() for value in values
    ]
    base = [Row(name=BASE)] if swept or not (rows or grid) else []
    by_name: dict[str, Row] = {}
    folders: dict[str, str] = {}
    for row in (*base, *rows, *grid, *swept):
        twin = folders.setdefault(folder_name(row.name), row.name)
        if row.name in by_name or twin != row.name:
            raise named.error(f"two rows would be named '{row.name}'; rename one")
        by_name[row.name] = row
    return by_name


def named_or_beginning(names: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """Those of `names` that are wanted: by the whole name or, where none is named so, by how it begins."""
    return [name for name in names if any(name == of or (of not in names and name.startswith(of)) for of in wanted)]


def folder_name(row: str) -> str:
    """The name of a row as that of a folder."""
    return re.sub(r"[^\w.,=+ -]", "_", row)


def _row(name: str, entry: Entry) -> Row:
    entries = entry.entries()
    command = entries.pop("command", None)
    support, evaluate = entries.pop("support", None), entries.pop("evaluate", None)
    if command is None:
        return Row(
            name=name,
            options={option: of.option_value(option) for option, of in entries.items()},
            support=read_support(support) if support else {},
            evaluate=read_evaluate(evaluate) if evaluate else {},
        )
    if entries or support or evaluate:
        raise entry.error("a row with a command trains nothing, and takes nothing besides")
    arguments = read_command(command)
    if not any("{report}" in part for part in arguments):
        raise command.error("has no {report}, the file that it must write")
    return Row(name=name, command=arguments)


def _grid_rows(entry: Entry) -> Iterator[Row]:
    """The cross product of all axes."""
    axes = []
    for axis, of in entry.entries().items():
        if isinstance(of.value, dict):
            axes.append([(axis, name, name, choice.options()) for name, choice in of.entries().items()])
        else:
            axes.append([(axis, shown(v), f"{axis}={shown(v)}", {axis: v}) for v in read_values(of, axis)])
    for number, choices in enumerate(itertools.product(*axes) if axes else ()):
        names = [name for *_, options in choices for name in options]
        if len(set(names)) < len(names):
            raise entry.error(f"two axes set one option, among {', '.join(names)}")
        if number == _MAX_GRID_ROWS:
            raise entry.error(f"has more than {_MAX_GRID_ROWS:,} rows")
        yield Row(
            name=", ".join(label for _, _, label, _ in choices),
            options={name: value for *_, options in choices for name, value in options.items()},
            place={axis: value for axis, value, _, _ in choices},
        )


def read_values(entry: Entry, option: str) -> list[Any]:
    """Values of an option."""
    return [value.option_value(option) for value in entry.items()]


def read_command(entry: Entry) -> tuple[str, ...]:
    """A command as its arguments."""
    try:
        return tuple(shlex.split(entry.text()))
    except ValueError as error:
        raise entry.error(f"cannot be split into arguments: {error}") from None


def read_support(entry: Entry) -> Support:
    """The support of a study or a row."""
    kinds = get_type_hints(SupportOptions)
    support: Support = {}
    for name, of in entry.known_entries(kinds).items():
        if name == "pairs":
            support[name] = list(dict.fromkeys(number.whole_number(0) for number in of.one_or_several()))
        else:
            support[name] = of.of_kind(kinds[name])
    return support


def read_evaluate(entry: Entry) -> Options:
    """Options that an evaluation reads."""
    options = entry.options()
    for name in options:
        if name not in options_of_evaluation():
            raise entry.entries()[name].error("an evaluation does not read this option; set it under 'options'")
    return options
