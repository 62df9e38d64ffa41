"""A study as data: a YAML file that says what is trained on what, with which options, and what is reported.

    config: examples/recovery/plain.yaml    # file of options: model, data, objective, rates
    seeds: [1, 2, 3]
    data:                                   # set of data -> commands that make it in the folder {data}, or a mapping
      two: ['tools/make_preferences.py --output {data}']    # with options and rows (or how they begin) of this set
      three: {commands: ['tools/make_preferences.py --num-annotators 3 --output {data}'], options: {max_length: 96}}
      rules: {commands: ['tools/make_preferences.py --output {data}'], rows: [longer]}
    options: {train_data: ['{data}/train.jsonl']}       # of every run, over those of `config`
    support: {data: '{data}/valid.jsonl', pairs: [0, 8]}    # as `megatron_lpc.evaluate --support-...`
    evaluate: {valid_data: {new: '{data}/new.jsonl'}}       # options of the evaluation only
    rows:                                   # name -> the options in which its runs differ
      plain: {latent_mode: none}
      lpc: {}
      longer wins: {command: 'longer.py --input {data}/new.jsonl --output {report}'}    # a rule: nothing is trained
    grid:                                   # cross product: an option with its values, or a mapping name -> options
      loss_type: [dpo, ipo]
      latent: {plain: {latent_mode: none}, exact: {latent_inference: exact}}
    sweep: {codebook_size: [2, 8, 32]}      # option -> its values, each a run with this option changed
    reference: plain                        # row that all others are compared with; {latent: plain} within a grid
    metrics: [support(new), prior(new), kl(new)]    # columns of the table (`metrics.py`)
    plot: [support(new)]                    # those that are drawn; the first one, unless set
    keep_checkpoints: false                 # true: changed `support` or `evaluate` do not train again
    processes: 1                            # of each run, under torchrun where there are several

Required: `config`, `seeds`, `data`. Rows of equal options are run once. Rows of a grid are named by what differs:
`loss_type=ipo, exact`. With `sweep`, and without rows and grid, there is a row `base` in which nothing is changed.

`{data}` stands for the folder of the set of data, `{output}` for that of the study, and in commands of rows `{report}`
for the JSON file to write, of the form of `megatron_lpc.evaluate --output`, and `{seed}`. Commands are arguments of
`python`. Paths start at the folder where the study is started. As the value of an option, `default` is the schema's.

A row may have `support` and `evaluate` of its own, over those of the study. `support` goes to rows with groups and a
latent that can be estimated for one. `support.pairs`: a list evaluates every run with each of these numbers of pairs;
with 0, a group is known by its prompts only. `support.seed` is the seed of the run, unless set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_lpc.config import shown
from megatron_lpc.config.options import nearest
from megatron_lpc.study.entries import Entry, Options, read_entry
from megatron_lpc.study.metrics import Metric, read_metrics
from megatron_lpc.study.rows import (
    Row,
    Support,
    named_or_beginning,
    read_command,
    read_evaluate,
    read_rows,
    read_support,
    read_values,
)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A set of data that runs learn from."""

    commands: tuple[tuple[str, ...], ...] = ()
    """That make it, one after the other: arguments of `python`."""
    options: Options = field(default_factory=dict)
    rows: tuple[str, ...] = ("",)
    """Rows that are run on it, by name or by how it begins."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The content of a file."""

    file: Path
    config: Path
    seeds: list[int]
    data: dict[str, DataSet]
    options: Options
    support: Support
    evaluate: Options
    rows: dict[str, Row]
    """By name, those of grid and sweep too."""
    sweep: dict[str, list[Any]]
    reference: str | dict[str, str] | None
    metrics: list[Metric] | None
    """None: `metrics.default_metrics`."""
    plot: list[str] | None
    keep_checkpoints: bool
    processes: int
    """Of each run."""

    def rows_of(self, data: str) -> list[Row]:
        """The rows that are run on a set of data."""
        return [self.rows[name] for name in named_or_beginning(list(self.rows), self.data[data].rows)]

    def reference_of(self, row: Row) -> str | None:
        """Name of the row that this one is compared with."""
        if isinstance(self.reference, dict):
            place = {**row.place, **self.reference}
            return next((other.name for other in self.rows.values() if row.place and other.place == place), None)
        return self.reference


KEYS = (
    *("config", "seeds", "data", "options", "support", "evaluate", "rows", "grid", "sweep", "reference", "metrics"),
    *("plot", "keep_checkpoints", "processes"),
)


def read_study(path: Path) -> Study:
    """The study of a file.

    Raises:
        UserError: it cannot be read, or something in it is unknown, missing or ill-typed; names the file and the key.
    """
    file = read_entry(path)
    given = file.known_entries(KEYS, required=("config", "seeds", "data"))

    def entry(key: str) -> Entry:
        return given.get(key, Entry(path, key, None))

    sweep = {name: read_values(values, name) for name, values in entry("sweep").entries().items()}
    rows = read_rows(entry("rows"), entry("grid"), sweep)
    keep = entry("keep_checkpoints")
    if keep.value not in (None, True, False):
        raise keep.error(f"must be true or false, got {keep.value!r}")
    data = {name: _data_set(of, rows) for name, of in entry("data").entries().items()}
    if not data:
        raise entry("data").error("names no set of data; one that is there already is `name: []`")
    return Study(
        file=path,
        config=Path(entry("config").text()),
        seeds=_seeds(entry("seeds")),
        data=data,
        options=entry("options").options(),
        support=read_support(entry("support")),
        evaluate=read_evaluate(entry("evaluate")),
        rows=rows,
        sweep=sweep,
        reference=_reference(entry("reference"), rows),
        metrics=read_metrics(entry("metrics")) if "metrics" in given else None,
        plot=[name.text() for name in entry("plot").items()] if "plot" in given else None,
        keep_checkpoints=bool(keep.value),
        processes=entry("processes").whole_number(1) if "processes" in given else 1,
    )


def _seeds(entry: Entry) -> list[int]:
    seeds = [seed.whole_number(0) for seed in entry.items()]
    if len(set(seeds)) < len(seeds):
        raise entry.error("a seed is there twice")
    return seeds


def _data_set(entry: Entry, rows: Iterable[str]) -> DataSet:
    if isinstance(entry.value, list):
        return DataSet(commands=_commands(entry))
    parts = entry.known_entries(("commands", "options", "rows"))
    return DataSet(
        commands=_commands(parts["commands"]) if "commands" in parts else (),
        options=parts["options"].options() if "options" in parts else {},
        rows=tuple(_wanted(of, rows) for of in parts["rows"].items()) if "rows" in parts else DataSet.rows,
    )


def _wanted(entry: Entry, rows: Iterable[str]) -> str:
    if not named_or_beginning(list(rows), [entry.text()]):
        close = nearest(entry.text(), rows)
        raise entry.error(f"no row has this name, or one that begins so{close}; rows: {', '.join(rows)}")
    return entry.text()


def _commands(entry: Entry) -> tuple[tuple[str, ...], ...]:
    return tuple(read_command(command) for command in entry.items()) if entry.value else ()


def _reference(entry: Entry, rows: Mapping[str, Row]) -> str | dict[str, str] | None:
    if entry.value is None:
        return None
    if not isinstance(entry.value, dict):
        if entry.value not in rows:
            raise entry.error(f"no row has this name{nearest(str(entry.value), rows)}; rows: {', '.join(rows)}")
        return str(entry.value)
    chosen = {}
    for axis, of in entry.entries().items():
        values = dict.fromkeys(row.place[axis] for row in rows.values() if axis in row.place)
        if shown(of.value) not in values:
            raise of.error(f"the grid has no such value; it has: {', '.join(values) or 'no such axis'}")
        chosen[axis] = shown(of.value)
    return chosen
