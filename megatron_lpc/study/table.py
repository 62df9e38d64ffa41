"""The tables of a study: means with intervals, differences to the reference, and each seed's figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from rich.table import Table

from megatron_lpc.config import shown
from megatron_lpc.study.intervals import Estimate
from megatron_lpc.study.results import Column, Results
from megatron_lpc.study.rows import Row
from megatron_lpc.terminal import markdown_table

_NONE = "-"


def markdown(results: Results) -> str:
    """All tables in Markdown, set of data by set of data."""
    parts = [_explanation(results)]
    for data in results.data:
        rows = results.rows(data)
        if rows:
            parts += [f"## {data}\n", _table(results, rows, partial(mean_cell, results, data))]
            parts += _differences(results, data, rows)
            parts += ["Seed by seed:\n", _table(results, rows, partial(_seeds_cell, results, data))]
    return "\n".join([*parts, _options(results.study.rows.values())])


def live_table(results: Results, data: str) -> Table:
    """Means with intervals of a set of data, for a terminal."""
    table = Table(title=data, title_justify="left")
    table.add_column("row", overflow="fold")
    for column in results.columns:
        table.add_column(column.heading, justify="right")
    for row in results.rows(data):
        table.add_row(row.name, *(mean_cell(results, data, row, column) for column in results.columns))
    return table


def csv_text(results: Results) -> str:
    """Every figure: set of data, row, seed, metric, support pairs, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "row", "seed", "metric", "support_pairs", "value"])
    for data in results.data:
        for row in results.rows(data):
            for column in results.columns:
                for seed, value in results.of(data, row.name, column).items():
                    writer.writerow([data, row.name, seed, column.metric.name, column.pairs, value])
    return text.getvalue()


def mean_cell(results: Results, data: str, row: Row, column: Column) -> str:
    """`mean ± half of the interval`, and the number of seeds where not all are there."""
    return _cell(results, row, results.estimate(data, row, column), f".{column.metric.digits}f")


def _difference_cell(results: Results, data: str, row: Row, column: Column) -> str:
    return _cell(results, row, results.difference(data, row, column), f"+.{column.metric.digits}f")


def _cell(results: Results, row: Row, estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return _NONE
    text = format(estimate.mean, form)
    if estimate.half_width is not None:
        text += f" ± {format(estimate.half_width, form.removeprefix('+'))}"
    is_whole = row.is_constant or estimate.count == len(results.seeds)
    return text if is_whole else f"{text} (n={estimate.count})"


def _seeds_cell(results: Results, data: str, row: Row, column: Column) -> str:
    values = results.of(data, row.name, column)
    figures = [format(values[seed], f".{column.metric.digits}f") if seed in values else _NONE for seed in results.seeds]
    return figures[0] if row.is_constant or not values else " / ".join(figures)


def _explanation(results: Results) -> str:
    seeds = ", ".join(map(str, results.seeds))
    if len(results.seeds) == 1:
        return f"Of one seed, {seeds}: one seed has no interval.\n"
    return (
        f"Mean and 95% interval (Student's t) over the seeds {seeds}. `n` of them are finished where not all are. One "
        "seed has no interval, nor has a rule that is the same for all.\n"
    )


def _differences(results: Results, data: str, rows: Iterable[Row]) -> list[str]:
    """The table of differences, if there is a reference."""
    reference = results.study.reference
    compared = [row for row in rows if results.study.reference_of(row) not in (None, row.name)]
    if not compared:
        return []
    name = reference if isinstance(reference, str) else _listed(reference or {})
    table = _table(results, compared, partial(_difference_cell, results, data))
    return [f"Difference to `{name}`, paired by seed:\n", table]


def _table(results: Results, rows: Iterable[Row], cell: Callable[[Row, Column], str]) -> str:
    columns = results.columns
    return markdown_table(
        ["row", *(column.heading for column in columns)],
        ([row.name, *(cell(row, column) for column in columns)] for row in rows),
    )


def _options(rows: Iterable[Row]) -> str:
    """What rows change, where their names do not tell."""
    lines = [
        f"- `{row.name}`: {_listed(row.options)}" for row in rows if row.options and _listed(row.options) != row.name
    ]
    return "Rows:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in options.items())
