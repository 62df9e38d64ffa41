"""Results as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.kernels.measure import Result
from benchmarks.kernels.report import Measured
from megatron_lpc.files import whole_file


def write_picture(path: Path, measured: Sequence[Measured]) -> None:
    """Time and extra memory of every provider, case by case; whiskers are the 20th and 80th percentile."""
    names = list(dict.fromkeys(result.provider for each in measured for result in each.results if result.times))
    size = (max(6.0, 1.6 * len(measured)), 7)
    figure, (time_axes, memory_axes) = plt.subplots(2, 1, figsize=size, layout="constrained")
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        for place, each in enumerate(measured):
            for result in each.results:
                if result.provider == name and result.times:
                    _draw(time_axes, memory_axes, result, place + offset, width, f"C{number % 10}")
    for axes, label in ((time_axes, "ms"), (memory_axes, "extra MiB")):
        axes.set(ylabel=label, xticks=range(len(measured)), xticklabels=_captions(measured))
        axes.grid(axis="y", alpha=0.3)
    handles = [plt.Rectangle((0, 0), 1, 1, color=f"C{number % 10}") for number in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, max(1, len(names))), frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def _draw(time_axes: Axes, memory_axes: Axes, result: Result, x: float, width: float, color: str) -> None:
    """One bar in each of the two halves."""
    low, median, high = (result.milliseconds(quantile) for quantile in (20, 50, 80))
    time_axes.bar(x, median, width, yerr=[[median - low], [high - median]], color=color)
    if result.memory is not None:
        memory_axes.bar(x, result.memory / 2**20, width, color=color)


def _captions(measured: Sequence[Measured]) -> list[str]:
    """The labels in which the cases differ."""
    labels = [each.case.labels() for each in measured]
    differ = [key for key in labels[0] if len({str(label[key]) for label in labels}) > 1]
    return ["\n".join(f"{key} {label[key]}" for key in differ) for label in labels]
