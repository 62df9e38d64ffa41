"""Curves of one or several runs in one picture.

    python tools/plot_metrics.py plain=out/plain lpc=out/lpc --output curves.png

A run is a `metrics.jsonl` or the folder that holds one, with a label before it if wanted; without one the folder's name labels it.
Training is a smoothed line over its faint raw values, each evaluation a dashed line with dots.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from megatron_lpc.training.metrics_file import METRICS_FILE, read_metrics

PANELS = {
    "loss": "loss",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "preference accuracy",
    "lpc/kl": "KL(q || p), nats a pair",
    "lpc/perplexity": "code usage perplexity",
    "lpc/active_codes": "active codes",
}

Curve = list[tuple[int, float]]
"""(iteration, value), one point an iteration, ascending."""
Curves = dict[tuple[str, str | None, str], Curve]
"""(run, evaluation or None for training, metric) -> its curve."""


def plot_metrics(runs: dict[str, Path], output: Path) -> None:
    """Draw the metrics files `runs` (label -> file) into the PNG `output`. Panels for which no run has a value are left out.

    Raises:
        FileNotFoundError: a metrics file does not exist.
        ValueError: a file is not of metrics, or no file has anything to draw.
    """
    curves = _collect(runs)
    panels = [metric for metric in PANELS if any(metric == key[2] for key in curves)]
    if not panels:
        raise ValueError(f"nothing to draw: {', '.join(map(str, runs.values()))} have none of {', '.join(PANELS)}")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    lines = sorted({key[:2] for key in curves}, key=lambda line: (list(runs).index(line[0]), line[1] or ""))
    for axes, metric in zip(grid.flat, panels, strict=False):
        axes.set(title=PANELS[metric], xlabel="step")
        axes.grid(alpha=0.3)
        for number, (run, evaluation) in enumerate(lines):
            if curve := curves.get((run, evaluation, metric)):
                _draw(axes, curve, run, evaluation, f"C{number % 10}")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
    os.replace(temporary, output)


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
    """Mean of the values around each, over about a twentieth of the curve. The window narrows at the ends, and passes over NaN."""
    reach = len(values) // 40
    smooth = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        window = [value for value in values[place - near : place + near + 1] if math.isfinite(value)]
        smooth.append(sum(window) / len(window) if window else math.nan)
    return smooth


def _named_runs(arguments: Iterable[str]) -> dict[str, Path]:
    runs: dict[str, Path] = {}
    for argument in arguments:
        label, _, place = argument.rpartition("=")
        path = Path(place)
        path = path / METRICS_FILE if path.is_dir() else path
        label = label or path.resolve().parent.name
        if label in runs:
            raise ValueError(f"two runs are called '{label}'; tell them apart with LABEL=PATH")
        runs[label] = path
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]PATH", help="metrics.jsonl, or the folder that holds it")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="PNG to write (default: %(default)s)")
    arguments: Any = parser.parse_args(argv)
    try:
        plot_metrics(_named_runs(arguments.runs), arguments.output)
    except (OSError, ValueError) as error:
        print(f"plot_metrics: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
