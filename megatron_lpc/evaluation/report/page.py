"""The page of a report: its template filled with the findings, in one file that needs no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron_lpc.evaluation.report.figures import accuracy_panel, curve_panels, map_panel, reliability_panel
from megatron_lpc.evaluation.report.findings import Findings
from megatron_lpc.files import write_json, write_text

HTML_FILE, JSON_FILE = "report.html", "report.json"
MOST_BARS = 24
"""Rows of a picture of accuracies, at most."""


def write_report(findings: Findings, output: Path) -> None:
    """Write both files into a folder. What the page says is read from the same values as the JSON."""
    values = asdict(findings)
    write_text(output / HTML_FILE, render(findings, values))
    write_json(output / JSON_FILE, values)


def render(findings: Findings, values: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        values: the findings as what JSON writes.
    """
    environment = Environment(
        loader=PackageLoader("megatron_lpc.evaluation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "visible": visible}
    pictures = {name: [Markup(svg) for svg in svgs] for name, svgs in _pictures(findings).items()}
    return environment.get_template("page.html").render(**values, pictures=pictures)


def figure(value: float, form: str = "d") -> Markup:
    """A number as the page shows it, with the exact one beside it for programs: an element `data`."""
    return Markup('<data value="{}">{}</data>').format(repr(value), format(value, form))


def visible(text: str) -> str:
    """A vocabulary entry with its spaces and line feeds to be seen."""
    shown = text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return shown if shown.strip() else repr(text)[1:-1] or "(empty)"


def _pictures(findings: Findings) -> dict[str, list[str]]:
    """Part of the page -> its pictures."""
    rows = {
        kind: {row.name: row.latents for row in findings.accuracy if row.kind == kind}
        for kind in dict.fromkeys(row.kind for row in findings.accuracy)
    }
    several = {kind: dict(list(of_kind.items())[:MOST_BARS]) for kind, of_kind in rows.items() if kind != "all"}
    latents = list(findings.accuracy[0].latents)
    return {
        "curves": [] if findings.curves is None else curve_panels(findings.curves),
        "map": _maps(findings),
        "calibration": [reliability_panel(findings.calibration)],
        "accuracy": [accuracy_panel(f"by {kind}", of_kind, latents) for kind, of_kind in several.items()],
    }


def _maps(findings: Findings) -> list[str]:
    """One map by code, and one each by group and by source."""
    points = findings.prompt_map.points
    kinds = {each.kind: each for each in findings.associations}
    labels = {"code": [f"code {point.code}" for point in points]}
    if "group" in kinds:
        labels["group"] = [str(point.group) for point in points]
    if "source" in kinds:
        labels["source"] = [str(point.source) for point in points]
    return [
        map_panel(f"prompts by {kind}", points, of_points, [name for name, _ in Counter(of_points).most_common(9)])
        for kind, of_points in labels.items()
    ]
