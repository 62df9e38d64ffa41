"""The pictures of a study, each a file by matplotlib: rows, swept options, and numbers of support pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from megatron_lpc.config import shown
from megatron_lpc.files import whole_file
from megatron_lpc.study.intervals import mean_interval
from megatron_lpc.study.metrics import Metric
from megatron_lpc.study.results import Column, Results, Values
from megatron_lpc.study.rows import Row

FORMATS = ("png", "svg")


def write_figures(results: Results, metrics: Sequence[Metric], output: Path, formats: Sequence[str]) -> list[Path]:
    """Write `rows`, `sweep` and `support-pairs`, those of them that there is something for.

    Args:
        metrics: what is drawn.
        output: the folder.
        formats: some of `FORMATS`.
    """
    metrics = [metric for metric in metrics if any(column.metric == metric for column in results.columns)]
    if not metrics:
        return []
    figures: dict[str, Figure | None] = {
        "rows": _rows_figure(results, metrics),
        "sweep": _sweep_figure(results, metrics[0]),
        "support-pairs": _support_figure(results, metrics),
    }
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        for suffix in formats:
            with whole_file(output / f"{name}.{suffix}") as temporary:
                # Without the date, so that equal results are equal files.
                figure.savefig(temporary, format=suffix, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
            written.append(output / f"{name}.{suffix}")
        plt.close(figure)
    return written


def _rows_figure(results: Results, metrics: Sequence[Metric]) -> Figure | None:
    """Rows from top to bottom: a point for each seed, and the mean with its interval. A plot per data and column."""
    columns = [column for column in results.columns if column.metric in metrics]
    rows = [row for row in results.study.rows.values() if any(row in results.rows(data) for data in results.data)]
    if not rows:
        return None
    height, width = len(results.data), len(columns)
    figure, grid = plt.subplots(
        height,
        width,
        figsize=(2.4 + 2.6 * width, height * (1 + 0.26 * len(rows))),
        layout="constrained",
        squeeze=False,
        sharey=True,
        sharex="col",
    )
    for line, data in enumerate(results.data):
        for axes, column in zip(grid[line], columns, strict=True):
            for place, row in enumerate(rows):
                _draw_seeds(axes, results, data, row, column, place)
            axes.set_title(f"{data}: {column.heading}" if height > 1 else column.heading, fontsize=9)
            axes.grid(axis="x", alpha=0.3)
    grid[0, 0].set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    grid[0, 0].invert_yaxis()
    return figure


def _draw_seeds(axes: Axes, results: Results, data: str, row: Row, column: Column, place: float) -> None:
    values = results.of(data, row.name, column)
    estimate = results.estimate(data, row, column)
    if estimate is None:
        return
    axes.scatter(list(values.values()), [place] * len(values), s=12, color="C0", alpha=0.5, linewidths=0)
    axes.errorbar(estimate.mean, place, xerr=estimate.half_width, fmt="|", color="C3", capsize=3, markersize=9)


def _sweep_figure(results: Results, metric: Metric) -> Figure | None:
    """A plot per swept option: a line through the means for each set of data, a point for each seed."""
    sweep = results.study.sweep
    if not sweep or not any(results.rows(data) for data in results.data):
        return None
    column = next(column for column in results.columns if column.metric == metric)
    across = min(4, len(sweep))
    down = -(-len(sweep) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(3.4 * across, 2.8 * down), layout="constrained", squeeze=False, sharey=True
    )
    for axes in grid.flat[len(sweep) :]:
        axes.set_visible(False)
    for axes, (option, values) in zip(grid.flat, sweep.items(), strict=False):
        names = [shown(value) for value in values]
        for number, data in enumerate(results.data):
            of_values = [results.of(data, f"{option}={name}", column) for name in names]
            offset = 0.08 * (number - (len(results.data) - 1) / 2)
            _draw_line(axes, [place + offset for place in range(len(names))], of_values, f"C{number}", data)
        axes.set_title(option, fontsize=10)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.grid(axis="y", alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(column.heading)
    _fit_to_seeds(grid.flat)
    _legend(figure)
    return figure


def _support_figure(results: Results, metrics: Sequence[Metric]) -> Figure | None:
    """Figures over the number of support pairs: a line per row. A plot per data and metric."""
    drawn = [metric for metric in metrics if any(c.metric == metric and c.pairs is not None for c in results.columns)]
    if not drawn:
        return None
    figure, grid = plt.subplots(
        len(results.data),
        len(drawn),
        figsize=(1 + 4 * len(drawn), 0.6 + 3.2 * len(results.data)),
        layout="constrained",
        squeeze=False,
    )
    for line, data in enumerate(results.data):
        for axes, metric in zip(grid[line], drawn, strict=True):
            columns = [column for column in results.columns if column.metric == metric]
            rows = results.rows(data)
            for number, row in enumerate(rows):
                of_pairs = [results.of(data, row.name, column) for column in columns]
                offset = 0.03 * (number - (len(rows) - 1) / 2)
                _draw_line(axes, [place + offset for place in range(len(columns))], of_pairs, f"C{number}", row.name)
            axes.set_xticks(range(len(columns)), [str(column.pairs) for column in columns])
            axes.set_xlabel("support pairs")
            axes.set_title(f"{data}: {metric.heading}", fontsize=10)
            axes.grid(axis="y", alpha=0.3)
    _legend(figure)
    return figure


def _draw_line(axes: Axes, places: Sequence[float], values: Sequence[Values], color: str, label: str) -> None:
    """A line through the means with their intervals, and a point for each seed."""
    there = [(place, list(of.values())) for place, of in zip(places, values, strict=True) if of]
    if not there:
        return
    estimates = [mean_interval(of) for _, of in there]
    axes.errorbar(
        [place for place, _ in there],
        [estimate.mean for estimate in estimates],
        yerr=[estimate.half_width or 0 for estimate in estimates],
        color=color,
        lw=1,
        capsize=3,
        label=label,
    )
    for place, of in there:
        axes.scatter([place] * len(of), of, color=color, s=14, alpha=0.5, linewidths=0)


def _fit_to_seeds(plots: Iterable[Axes]) -> None:
    """Show the range of the points: an interval of two seeds may be many times as wide, and is cut off."""
    plots = list(plots)
    points = [part for axes in plots for part in axes.collections if isinstance(part, PathCollection)]
    heights = [float(height) for part in points for height in np.asarray(part.get_offsets())[:, 1]]
    if heights:
        margin = 0.1 * (max(heights) - min(heights)) or 1.0
        for axes in plots:
            axes.set_ylim(min(heights) - margin, max(heights) + margin)


def _legend(figure: Figure) -> None:
    """One for all plots."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=min(4, len(handles)),
            frameon=False,
            fontsize=8,
        )
