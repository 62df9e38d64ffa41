"""Results as CSV and Markdown, with where they come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kernels.measure import Result
from benchmarks.kernels.providers import Case
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table


@dataclass(frozen=True)
class Measured:
    """A case, the results of its providers, and the peak rate of the machine in the same run."""

    case: Case
    results: Sequence[Result]
    peak: float
    """FLOP/s of the vendor's product for a case with `flops`, else bytes/s of a copy."""

    def rows(self) -> list[dict[str, object]]:
        """Rows of the table, one per provider; empty cells where nothing was measured."""
        return [{**self.case.labels(), "provider": result.provider, **self._figures(result)} for result in self.results]

    def _figures(self, result: Result) -> dict[str, object]:
        if self.case.flops is not None:
            work, unit, unit_size, share = self.case.flops, "TFLOP/s", 1e12, "of product"
        else:
            assert self.case.bytes is not None
            work, unit, unit_size, share = self.case.bytes, "GB/s", 1e9, "of copy"
        if not result.times:
            return {**dict.fromkeys(("ms", "ms p20", "ms p80", "extra MiB", unit, share), ""), "note": result.note}
        rate = work / (result.milliseconds(50) / 1e3)
        return {
            "ms": f"{result.milliseconds(50):.3f}",
            "ms p20": f"{result.milliseconds(20):.3f}",
            "ms p80": f"{result.milliseconds(80):.3f}",
            "extra MiB": "" if result.memory is None else f"{result.memory / 2**20:.0f}",
            unit: f"{rate / unit_size:.4g}",
            share: f"{rate / self.peak:.1%}",
            "note": result.note,
        }


def all_rows(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """The rows of all cases."""
    return [row for each in measured for row in each.rows()]


def write_csv(path: Path, measured: Sequence[Measured], origin: dict[str, str]) -> None:
    """One line per provider and case, with the origin in columns of its own."""
    rows = [{**row, **origin} for row in all_rows(measured)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_markdown(path: Path, measured: Sequence[Measured], origin: dict[str, str]) -> None:
    """The origin as a list, then the table."""
    rows = all_rows(measured)
    origins = "".join(f"- {key}: `{value}`\n" for key, value in origin.items())
    headings = list(rows[0])
    table = markdown_table(headings, [list(row.values()) for row in rows], left=len(headings))
    write_text(path, f"{origins}\n{table}")
