"""One page of Markdown: how each part ended, and each goal beside its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.goals import GOALS, Goal
from benchmarks.gpu.run import Record


def summary(gpu: str, origin: dict[str, str], records: Sequence[Record], results: Path) -> str:
    """The page.

    Args:
        gpu: name of the GPU.
        origin: what has to be known to measure the same again.
        records: of the parts that ran.
        results: folder of the tables.
    """
    heading = [f"# {gpu}", "", *(f"- {name}: `{value}`" for name, value in origin.items()), ""]
    return "\n".join([*heading, *_goals(gpu, results), "", *_parts(records, results)]) + "\n"


def goals_table() -> str:
    """The goals alone."""
    rows = [(goal.what, ", ".join(name.upper() for name in goal.gpus), goal.bound) for goal in GOALS]
    return "\n".join(_table(("goal", "GPU", "bound"), rows)) + "\n"


def _goals(gpu: str, results: Path) -> list[str]:
    wanted = [goal for goal in GOALS if any(name in gpu.lower() for name in goal.gpus)]
    verdicts = [_verdict(goal, results) for goal in wanted]
    counts = {name: sum(verdict == name for _, verdict in verdicts) for name in ("pass", "fail", "not measured")}
    counted = ", ".join(f"{count} {name}" for name, count in counts.items())
    rows = [(goal.what, goal.bound, figure, verdict) for goal, (figure, verdict) in zip(wanted, verdicts, strict=True)]
    heading = f"## Goals: {counted}" if wanted else "## Goals: none for this GPU"
    return [heading, "", *_table(("goal", "bound", "measured", "result"), rows)]


def _verdict(goal: Goal, results: Path) -> tuple[str, str]:
    figure = goal.figure(results)
    if figure is None:
        return "", "not measured"
    return f"{figure:.4g}", "pass" if goal.is_met(figure) else "fail"


def _parts(records: Sequence[Record], results: Path) -> list[str]:
    passed = sum(record.passed for record in records)
    rows = [
        (record.part, record.result, f"{record.seconds:.0f} of {record.limit}", _table_of(record, results), record.note)
        for record in records
    ]
    heading = f"## Parts: {passed} of {len(records)} passed"
    return [heading, "", *_table(("part", "result", "seconds", "table", "last line"), rows)]


def _table_of(record: Record, results: Path) -> str:
    """A link to the table that a part wrote, if it did."""
    file = results / f"{record.part}.md"
    return f"[{file.name}]({file.name})" if file.exists() else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(headings), f"|{' --- |' * len(headings)}", *map(line, rows)]
