"""The pictures of a report, as SVG within the page: by matplotlib, with the page's own colour for ink."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_lpc.evaluation.report.calibration import Reliability
from megatron_lpc.evaluation.report.curves import PANELS, Curve, Curves
from megatron_lpc.evaluation.report.intervals import Share
from megatron_lpc.evaluation.report.prompt_map import Point

_INK = "#012345"
"""Drawn in place of `currentColor`, which matplotlib does not know."""
_COLORS = ["#2f7ed8", "#e8743b", "#2aa876", "#b057c9", "#d64550", "#8a9a1f", "#17a2b8", "#b0762b", "#7a7fd0"]
"""Legible on white and on black."""
_OTHERS = "#9a9a9a"
_LONGEST_LABEL = 24
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Names may have dollars in them.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
}


def curve_panels(curves: Curves) -> list[str]:
    """A picture for each of `PANELS`: a line of the training, and one with dots of each validation set."""
    return [_curve_panel(curves, title, metrics) for title, metrics in PANELS.items()]


def _curve_panel(curves: Curves, title: str, metrics: Sequence[str]) -> str:
    with _picture(title, 3.6, 2.6) as (svg, axes):
        styles = ["-", ":"]
        for metric, style in zip(metrics, styles, strict=False):
            suffix = "" if len(metrics) == 1 else f", {'posterior' if metric.endswith('_q') else 'prior'}"
            _line(axes, curves.training[metric], _COLORS[0], style, "training" + suffix)
            for number, (name, of_set) in enumerate(curves.evaluations.items(), 1):
                _line(axes, of_set[metric], _COLORS[number % len(_COLORS)], style, _short(name) + suffix, marker="o")
        axes.set(title=title, xlabel="step")
        axes.grid(visible=True)
        _legend(axes)
    return svg[0]


def _line(axes: Axes, curve: Curve, color: str, style: str, label: str, marker: str = "") -> None:
    if curve:
        steps, values = zip(*curve, strict=True)
        axes.plot(steps, values, style, color=color, label=label, marker=marker, markersize=3, linewidth=1.2)


def map_panel(title: str, points: Sequence[Point], labels: Sequence[str], shown: Sequence[str]) -> str:
    """The map in colours of labels; those that are not shown by name are grey.

    Args:
        labels: of each point.
        shown: labels with a colour, the first nine of them.
    """
    with _picture(title, 3.9, 3.9) as (svg, axes):
        colors = dict(zip(shown, _COLORS, strict=False))
        rest = [place for place, label in enumerate(labels) if label not in colors]
        _dots(axes, [points[place] for place in rest], _OTHERS, "others")
        for name, color in colors.items():
            of_name = [point for point, label in zip(points, labels, strict=True) if label == name]
            _dots(axes, of_name, color, _short(name))
        axes.set(title=title, xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        _legend(axes, markerscale=2)
    return svg[0]


def _dots(axes: Axes, points: Sequence[Point], color: str, label: str) -> None:
    if points:
        xs, ys = [point.x for point in points], [point.y for point in points]
        axes.plot(xs, ys, linestyle="", marker="o", markersize=3, markeredgewidth=0, color=color, label=label)


def reliability_panel(found: Sequence[Reliability]) -> str:
    """Accuracy over confidence, with the diagonal of a calibrated model."""
    with _picture("calibration", 3.9, 3.4) as (svg, axes):
        axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=0.8, linestyle="--", label="calibrated")
        for number, of_latent in enumerate(found):
            confidence = [each.confidence for each in of_latent.bins]
            accuracy = [each.accuracy for each in of_latent.bins]
            axes.plot(confidence, accuracy, "o-", color=_COLORS[number], markersize=4, label=of_latent.latent)
        axes.set(xlabel="confidence: sigmoid |margin|", ylabel="accuracy", xlim=(0.49, 1.01), ylim=(-0.02, 1.02))
        axes.grid(visible=True)
        _legend(axes)
    return svg[0]


def accuracy_panel(title: str, rows: Mapping[str, Mapping[str, Share]], latents: Sequence[str]) -> str:
    """Accuracies with their intervals: a line per row, a colour per latent."""
    with _picture(title, 3.9, 1.2 + 0.34 * len(rows)) as (svg, axes):
        for number, latent in enumerate(latents):
            offset = 0.18 * (number - (len(latents) - 1) / 2)
            found = [of_row[latent] for of_row in rows.values()]
            axes.errorbar(
                [100 * share.value for share in found],
                [place + offset for place in range(len(rows))],
                xerr=[
                    [100 * max(0.0, share.value - share.low) for share in found],
                    [100 * max(0.0, share.high - share.value) for share in found],
                ],
                fmt="o",
                markersize=3.5,
                capsize=2,
                color=_COLORS[number],
                label=latent,
            )
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.set(title=title, xlabel="accuracy, %", ylim=(len(rows) - 0.5, -0.5), xlim=(-3, 103))
        axes.grid(visible=True, axis="x")
        _legend(axes)
    return svg[0]


@contextmanager
def _picture(name: str, width: float, height: float) -> Iterator[tuple[list[str], Axes]]:
    """A figure of so many inches; its SVG is in the list when the block has ended.

    Args:
        name: makes its ids differ from those of other pictures on the page.
    """
    svg: list[str] = []
    with plt.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        try:
            yield svg, axes
            svg.append(_inline(figure, name))
        finally:
            plt.close(figure)


def _legend(axes: Axes, markerscale: float = 1) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        columns = min(3, len(labels)) if max(map(len, labels)) < 14 else 2
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=columns,
            markerscale=markerscale,
            frameon=False,
            fontsize=8,
        )


def _inline(figure: Figure, name: str) -> str:
    """The figure as an element of a page: no declarations, no fixed size, no ids that others have."""
    buffer = io.StringIO()
    # Without the date, so that equal results are equal files.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1))
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1).replace(_INK, "currentColor")


def _short(label: str) -> str:
    label = f" {label}" if label.startswith("_") else label  # matplotlib would leave it out of the legend.
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
