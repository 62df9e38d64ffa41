"""What an evaluation found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from megatron_lpc.evaluation.information import Information


@dataclass(frozen=True, kw_only=True)
class Person:
    """One group, judged by its held-out pairs under the latent of its support."""

    mixture: list[float]
    """Weight of each code."""
    held_out: int
    accuracy: float | None
    """None where no pair is held out."""


@dataclass(frozen=True, kw_only=True)
class SupportReport:
    """Everybody's held-out pairs, each under the latent of its own group's support."""

    held_out: int
    """Pairs judged: of a group with support, with a prompt that is not in it."""
    accuracy: dict[str, float]
    """Of the same held-out pairs, under `support` and under each of the model's own latents."""
    people: dict[str, Person]
    left_out: list[str]
    """Groups with too few pairs for a support."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One data set."""

    pairs: int
    metrics: dict[str, dict[str, float]]
    """Latent -> metrics over all pairs, named as in training."""
    information: Information | None
    """Posterior's most probable code and group; None without codes or groups."""
    support: SupportReport | None


def report_table(reports: Mapping[str, Report]) -> Table:
    """A row per data set; accuracies under the model's own latents are over all its pairs, the one under `support` over those held out."""
    table = Table(
        title="Preference accuracy under each latent, and what codes know of the groups", title_justify="left"
    )
    rows = {name: _cells(report) for name, report in reports.items()}
    for heading in ("data", *dict.fromkeys(heading for cells in rows.values() for heading in cells)):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for name, cells in rows.items():
        table.add_row(name, *(cells.get(str(column.header), "") for column in table.columns[1:]))
    return table


def _cells(report: Report) -> dict[str, str]:
    """Heading -> cell."""
    cells = {"pairs": str(report.pairs)}
    cells |= {latent: f"{metrics['rewards/accuracies']:.1%}" for latent, metrics in report.metrics.items()}
    if report.support is not None:
        cells |= {"support": f"{report.support.accuracy['support']:.1%}", "held out": str(report.support.held_out)}
    if report.information is not None:
        known = report.information
        cells |= {"bits": f"{known.bits:.3f}", "at most": f"{known.maximum:.3f}", "by chance": f"{known.bias:.3f}"}
    return cells


def write_json(path: Path, settings: Mapping[str, object], reports: Mapping[str, Report]) -> None:
    """Write the settings of an evaluation and, under `data`, its reports. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**settings, "data": {name: asdict(report) for name, report in reports.items()}}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
