"""Curves of one or several runs in one picture.

    python tools/plot_metrics.py plain=out/plain lpc=out/lpc --output curves.png

A run is a `metrics.jsonl` or the folder that holds one, with a label before it if wanted; without one the folder's name
labels it. Training is a smoothed line over its faint raw values, each evaluation a dashed line with dots.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.files import whole_file
from megatron_lpc.training.metrics_file import named_runs, read_metrics

PANELS = {
    "loss": "loss",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "preference accuracy",
    "lpc/kl": "KL(q || p), nats per pair",
    "lpc/perplexity": "code usage perplexity",
    "lpc/active_codes": "active codes",
}

Curve = list[tuple[int, float]]
"""(iteration, value), one point per iteration, ascending."""
Curves = dict[tuple[str, str | None, str], Curve]
"""(run, evaluation or None for training, metric) -> its curve."""


def plot_metrics(runs: dict[str, Path], output: Path) -> None:
    """Draw the metrics files `runs` (label -> file) into the PNG `output`, in a panel per metric that a run has.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, or is not of metrics.
        UserError: no file has anything to draw.
    """
    curves = _collect(runs)
    panels = [metric for metric in PANELS if any(metric == key[2] for key in curves)]
    if not panels:
        files = ", ".join(map(str, runs.values()))
        raise UserError(f"nothing to draw: {files} have none of {', '.join(PANELS)}")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axes, metric in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, metric, curves, list(runs))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    _draw_legend(figure)
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def _draw_legend(figure: Figure) -> None:
    """One legend for all panels."""
    labelled = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    handles = {label: handle for panel in labelled for handle, label in panel}
    columns = min(4, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _draw_panel(axes: Axes, metric: str, curves: Curves, runs: list[str]) -> None:
    """All curves of one metric. A run and its evaluations keep their colors from panel to panel."""
    axes.set(title=PANELS[metric], xlabel="step")
    axes.grid(alpha=0.3)
    lines = sorted({(run, evaluation) for run, evaluation, _ in curves}, key=lambda line: _rank(line, runs))
    for number, (run, evaluation) in enumerate(lines):
        curve = curves.get((run, evaluation, metric))
        if curve:
            _draw(axes, curve, run, evaluation, f"C{number % 10}")


def _rank(line: tuple[str, str | None], runs: list[str]) -> tuple[int, str]:
    """Runs as given, the training of each before its evaluations."""
    run, evaluation = line
    return runs.index(run), evaluation or ""


def _collect(runs: dict[str, Path]) -> Curves:
    points: dict[tuple[str, str | None, str], dict[int, float]] = defaultdict(dict)
    for run, path in runs.items():
        for record in read_metrics(path):
            for metric in PANELS.keys() & record.keys():
                points[run, record.get("evaluation"), metric][record["iteration"]] = record[metric]
    return {key: sorted(curve.items()) for key, curve in points.items()}


def _draw(axes: Axes, curve: Curve, run: str, evaluation: str | None, color: str) -> None:
    iterations, values = zip(*curve, strict=True)
    if evaluation:
        axes.plot(iterations, values, "o--", color=color, markersize=4, linewidth=1, label=f"{run}: {evaluation}")
        return
    axes.plot(iterations, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(iterations, _smooth(values), color=color, label=run)


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of the values around each, over about a twentieth of the curve.

    The window narrows at the ends, and passes over NaN.
    """
    reach = len(values) // 40
    smooth = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        window = [value for value in values[place - near : place + near + 1] if math.isfinite(value)]
        smooth.append(sum(window) / len(window) if window else math.nan)
    return smooth


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when a run cannot be read or drawn."""
    with reports_errors():
        parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", help="metrics.jsonl, or its folder")
        parser.add_argument("--output", type=Path, default=Path("curves.png"), help="PNG to write (%(default)s)")
        arguments = parser.parse_args(argv)
        try:
            plot_metrics(named_runs(arguments.runs), arguments.output)
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
