"""The picture of a sweep: support accuracy against each option, seeds as points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.codes.plan import PlannedRun
from benchmarks.codes.sweep import Sweep, row_name, shown
from benchmarks.codes.table import Result, result_of
from megatron_lpc.files import whole_file

_COLUMNS = 4
_PLAIN = "plain"
"""Row without codes, whose accuracy is a line across."""


def write_picture(path: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """One plot for each swept option: a line through the means for each set of data, a point for each seed.

    A dashed line is the accuracy without codes, where the sweep has a row `plain`.
    """
    results: dict[tuple[str, str], list[Result]] = {}
    for run in runs:
        if run.is_finished():
            results.setdefault((run.data, run.row), []).append(result_of(run.report(), sweep.report))
    height = math.ceil(len(sweep.sweep) / _COLUMNS)
    figure, grid = plt.subplots(
        height, _COLUMNS, figsize=(3.4 * _COLUMNS, 2.8 * height), layout="constrained", squeeze=False, sharey=True
    )
    for axes in grid.flat[len(sweep.sweep) :]:
        axes.set_visible(False)
    names = [data for data in sweep.data if any(found == data for found, _ in results)]
    for axes, (option, values) in zip(grid.flat, sweep.sweep.items(), strict=False):
        for number, data in enumerate(names):
            points = [
                (place + 0.08 * (number - (len(names) - 1) / 2), result.support)
                for place, value in enumerate(values)
                for result in results.get((data, row_name(option, value)), [])
                if result.support is not None
            ]
            _draw(axes, points, f"C{number}")
            plain = results.get((data, _PLAIN), [])
            if plain:
                axes.axhline(sum(result.prior for result in plain) / len(plain), color=f"C{number}", ls="--", lw=0.8)
        _caption(axes, option, values)
    for axes in grid[:, 0]:
        axes.set_ylabel("support accuracy, %")
    handles = [Line2D([], [], color=f"C{number}", marker="o") for number in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, len(names)), frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _draw(axes: Axes, points: Sequence[tuple[float, float]], color: str) -> None:
    """Points (place, accuracy) and a line through the mean at each place."""
    places = sorted({place for place, _ in points})
    means = []
    for place in places:
        values = [value for other, value in points if other == place]
        means.append(sum(values) / len(values))
    axes.plot(places, means, color=color, lw=1)
    axes.scatter([place for place, _ in points], [value for _, value in points], color=color, s=14, alpha=0.8)


def _caption(axes: Axes, option: str, values: Sequence[Any]) -> None:
    axes.set_title(option, fontsize=10)
    axes.set_xticks(range(len(values)), [shown(value) for value in values], fontsize=8)
    axes.grid(axis="y", alpha=0.3)
