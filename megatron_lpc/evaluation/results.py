"""What an evaluation found: as a table for readers, as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from megatron_lpc.evaluation.information import Information
from megatron_lpc.files import write_json
from megatron_lpc.losses import CodeVerdict


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """The query pairs of one group, under the latent from its support set."""

    mixture: list[float] | None
    """[K] weight of each code: the mean posterior over the support set; None without codes."""
    posterior: list[float] | None
    """[K] the exact posterior over codes by the labels of the support set, under a uniform prior; None without codes.
    """
    query_pairs: int
    accuracy: float | None
    """Under the group's latent; None where there is no query pair."""
    accuracy_exact: float | None
    """By the exact posterior; None where there is no query pair, or no codes."""


@dataclass(frozen=True, kw_only=True)
class SupportReport:
    """The query pairs of all groups, each under the latent of its own group."""

    query_pairs: int
    """Pairs of a group with a support set, with a prompt that is not in it."""
    accuracy: dict[str, float]
    """On the same query pairs, under each of the model's own latents, under `support` (the group's latent), and, with
    codes, by `support_exact` (the exact posterior of the group and the prompt) and `swapped` (that of another group,
    averaged over the other groups)."""
    groups: dict[str, GroupReport]
    left_out: list[str]
    """Groups with too few pairs for a support set."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One data set."""

    pairs: int
    metrics: dict[str, dict[str, float]]
    """Latent -> metrics over all pairs, named as in training; `marginal`: all codes, weighted by the prior."""
    information: Information | None
    """Of the posterior's most probable code and the group; None without codes or groups."""
    support: SupportReport | None
    """None without groups, or a latent that can be estimated for one."""
    verdict: CodeVerdict | None = None
    """Whether the codes are in use on these pairs; None without codes."""


def report_table(reports: Mapping[str, Report]) -> Table:
    """One line per data set.

    Accuracies under the model's own latents are over all pairs; those under `support` and by the exact posterior are
    over the query pairs.
    """
    title = "Preference accuracy under each latent, and what the codes tell about the groups"
    table = Table(title=title, title_justify="left")
    lines = {name: _cells(report) for name, report in reports.items()}
    headings = list(dict.fromkeys(heading for cells in lines.values() for heading in cells))
    table.add_column("data")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, cells in lines.items():
        table.add_row(name, *(cells.get(heading, "") for heading in headings))
    return table


def _cells(report: Report) -> dict[str, str]:
    """Heading -> cell."""
    cells = {"pairs": str(report.pairs)}
    for latent, metrics in report.metrics.items():
        cells[latent] = f"{metrics['rewards/accuracies']:.1%}"
    if report.verdict is not None:
        cells["codes"] = report.verdict.state
    if report.support is not None:
        cells["support"] = f"{report.support.accuracy['support']:.1%}"
        if "support_exact" in report.support.accuracy:
            cells["support, exact"] = f"{report.support.accuracy['support_exact']:.1%}"
        if "swapped" in report.support.accuracy:
            cells["swapped"] = f"{report.support.accuracy['swapped']:.1%}"
        cells["query pairs"] = str(report.support.query_pairs)
    if report.information is not None:
        cells["bits"] = f"{report.information.bits:.3f}"
        cells["at most"] = f"{report.information.maximum:.3f}"
        cells["by chance"] = f"{report.information.bias:.3f}"
    return cells


def verdict_lines(reports: Mapping[str, Report]) -> list[str]:
    """Why the codes of each data set count as active or collapsed, and what support makes of them."""
    lines = []
    for name, report in reports.items():
        if report.verdict is None:
            continue
        line = f"codes on {name}: {report.verdict.state} ({report.verdict.why})"
        if report.support is not None:
            accuracy = report.support.accuracy
            line += f"; support {accuracy['support']:.1%}, prior {accuracy['prior']:.1%}"
        lines.append(line)
    return lines


def write_report(path: Path, settings: Mapping[str, object], reports: Mapping[str, Report]) -> None:
    """Write the settings of an evaluation and, under `data`, its reports as JSON, whole or not at all."""
    data = {name: asdict(report) for name, report in reports.items()}
    write_json(path, {**settings, "data": data})
