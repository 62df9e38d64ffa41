"""The table of a sweep: one per set of data, one line per row, seeds divided by slashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.codes.plan import PlannedRun
from benchmarks.codes.sweep import Sweep
from megatron_lpc.terminal import markdown_table

_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one run; None where a model without codes has no such figure. Accuracies are in percent."""

    kl: float | None
    """KL(q || p) over the disagreeing pairs, nats."""
    bits: float | None
    """Mutual information of the most probable code and the annotator, over the disagreeing pairs."""
    active_codes: float | None
    """Codes that are the most probable one of some disagreeing pair."""
    support: float | None
    """Accuracy on disagreeing pairs under the latent from the annotator's support set."""
    prior: float
    """Accuracy on disagreeing pairs under the prior, or under the only latent or none."""
    agree: float | None
    """Accuracy on the pairs on which all agree, under support where there is it; None where no such pairs are there."""


def result_of(report: dict[str, Any], sets: dict[str, Any]) -> Result:
    """The figures of a report; `sets`: that of `Sweep.report`."""
    disagree = report["data"][sets["disagree"]]
    metrics = disagree["metrics"].get("prior") or disagree["metrics"]["none"]
    information = disagree["information"]
    agree_set = sets.get("agree")
    return Result(
        kl=metrics.get("lpc/kl"),
        bits=information["bits"] if information else None,
        active_codes=metrics.get("lpc/active_codes"),
        support=_under_support(disagree),
        prior=100 * metrics["rewards/accuracies"],
        agree=_accuracy(report["data"][agree_set]) if agree_set else None,
    )


def _under_support(found: dict[str, Any]) -> float | None:
    return 100 * found["support"]["accuracy"]["support"] if found["support"] else None


def _accuracy(found: dict[str, Any]) -> float:
    support = _under_support(found)
    metrics = found["metrics"].get("prior") or found["metrics"]["none"]
    return 100 * metrics["rewards/accuracies"] if support is None else support


COLUMNS = {
    "KL, nats": ("kl", ".2f"),
    "bits": ("bits", ".2f"),
    "active codes": ("active_codes", ".0f"),
    "disagree: support": ("support", ".1f"),
    "disagree: prior": ("prior", ".1f"),
    "agree": ("agree", ".1f"),
}
"""Heading -> field of `Result` and its format."""


def sweep_table(sweep: Sweep, runs: Sequence[PlannedRun], data: str) -> str:
    """The Markdown table of a set of data: rows of which a run is finished."""
    lines = []
    for row, changed in sweep.all_rows().items():
        finished = [run for run in runs if (run.row, run.data) == (row, data) and run.is_finished()]
        if finished:
            results = [result_of(run.report(), sweep.report) for run in finished]
            lines.append([_label(row, changed), *(_cell(results, *column) for column in COLUMNS.values())])
    return markdown_table(["row", *COLUMNS], lines, left=1 + len(COLUMNS))


def _label(row: str, changed: dict[str, Any]) -> str:
    """The name of a row and, where the name does not tell them, its options."""
    if len(changed) < 2:
        return row
    return f"{row} ({', '.join(f'{name}={value}' for name, value in changed.items())})"


def _cell(results: Sequence[Result], field: str, form: str) -> str:
    values = [getattr(result, field) for result in results]
    return " / ".join(_NONE if value is None else format(value, form) for value in values)
