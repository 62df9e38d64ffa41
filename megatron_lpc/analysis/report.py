"""What an evaluation found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from megatron_lpc.analysis.information import Information


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
    """A row per data set; accuracies under the model's own latents are over all its pairs, the one under `support` over held-out pairs."""
    latents = list(dict.fromkeys(latent for report in reports.values() for latent in report.metrics))
    table = Table(title="preference accuracy", title_justify="left")
    for heading in ("data", "pairs", *latents, "support (held-out pairs)", "code/group information, bits"):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for name, report in reports.items():
        accuracies = [f"{report.metrics[latent]['rewards/accuracies']:.1%}" for latent in latents]
        support, known = report.support, report.information
        table.add_row(
            name,
            str(report.pairs),
            *accuracies,
            f"{support.accuracy['support']:.1%} ({support.held_out})" if support else "",
            f"{known.bits:.3f} of {known.maximum:.3f} (by chance {known.bias:.3f})" if known else "",
        )
    return table


def write_json(path: Path, settings: Mapping[str, object], reports: Mapping[str, Report]) -> None:
    """Write the settings of an evaluation and, under `data`, its reports. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**settings, "data": {name: asdict(report) for name, report in reports.items()}}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
