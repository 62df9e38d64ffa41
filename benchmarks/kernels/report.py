"""Results as CSV, Markdown and a picture, with where they come from."""

from __future__ import annotations

import csv
import io
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import matplotlib
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.kernels.measure import Case, Result


@dataclass(frozen=True)
class Measured:
    """A case, the results of its providers, and the ceilings of the machine in the same run."""

    case: Case
    results: Sequence[Result]
    ceiling: float
    """FLOP/s of the vendor's product for a case with `flops`, else bytes/s of a copy."""

    def rows(self) -> list[dict[str, object]]:
        """Rows of the table, one a provider; empty cells where nothing was measured."""
        return [{**self.case.labels(), "provider": result.provider, **self._figures(result)} for result in self.results]

    def _figures(self, result: Result) -> dict[str, object]:
        unit, work = ("TFLOP/s", self.case.flops) if self.case.flops is not None else ("GB/s", self.case.bytes)
        rate_of, share_of = unit, "of product" if self.case.flops is not None else "of copy"
        empty = dict.fromkeys(("ms", "ms p20", "ms p80", "extra MiB", rate_of, share_of), "")
        if not result.times or work is None:
            return {**empty, "note": result.note}
        rate = work / (result.milliseconds(50) / 1e3)
        return {
            "ms": f"{result.milliseconds(50):.3f}",
            "ms p20": f"{result.milliseconds(20):.3f}",
            "ms p80": f"{result.milliseconds(80):.3f}",
            "extra MiB": "" if result.memory is None else f"{result.memory / 2**20:.0f}",
            rate_of: f"{rate / (1e12 if unit == 'TFLOP/s' else 1e9):.4g}",
            share_of: f"{rate / self.ceiling:.1%}",
            "note": result.note,
        }


def provenance(command: str, device: str) -> dict[str, str]:
    """What has to be known to measure the same again."""
    try:
        import triton

        compiler = triton.__version__
    except ImportError:
        compiler = "none"
    return {
        "command": command,
        "commit": _commit(),
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": compiler,
        "python": platform.python_version(),
    }


def write_csv(path: Path, measured: Sequence[Measured], origin: dict[str, str]) -> None:
    """One line a provider and case, with the origin in columns of its own."""
    rows = [{**row, **origin} for each in measured for row in each.rows()]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _write(path, lambda file: file.write(text.getvalue().encode()))


def write_markdown(path: Path, measured: Sequence[Measured], origin: dict[str, str]) -> None:
    """The origin as a list, then the table."""
    rows = [row for each in measured for row in each.rows()]
    lines = [f"- {key}: `{value}`" for key, value in origin.items()]
    lines += ["", f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    lines += [f"| {' | '.join(str(cell).replace('|', '/') for cell in row.values())} |" for row in rows]
    _write(path, lambda file: file.write("\n".join([*lines, ""]).encode()))


def write_picture(path: Path, measured: Sequence[Measured]) -> None:
    """Time of every provider, and its extra memory, case by case; whiskers are the 20th and 80th percentile."""
    names = list(dict.fromkeys(result.provider for each in measured for result in each.results if result.times))
    figure, axes = plt.subplots(2, 1, figsize=(max(6.0, 1.6 * len(measured)), 7), layout="constrained", squeeze=False)
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        for place, each in enumerate(measured):
            result = next((result for result in each.results if result.provider == name and result.times), None)
            if result is None:
                continue
            at, color = place + (number - (len(names) - 1) / 2) * width, f"C{number % 10}"
            low, middle, high = (result.milliseconds(quantile) for quantile in (20, 50, 80))
            axes[0, 0].bar(at, middle, width, yerr=[[middle - low], [high - middle]], color=color)
            if result.memory is not None:
                axes[1, 0].bar(at, result.memory / 2**20, width, color=color)
    for axis, label in ((axes[0, 0], "ms"), (axes[1, 0], "extra MiB")):
        axis.set(ylabel=label, xticks=range(len(measured)), xticklabels=_captions(measured))
        axis.grid(axis="y", alpha=0.3)
    handles = [plt.Rectangle((0, 0), 1, 1, color=f"C{number % 10}") for number in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, max(1, len(names))), frameon=False)
    _write(path, lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)


def _captions(measured: Sequence[Measured]) -> list[str]:
    """Labels in which the cases differ."""
    labels = [each.case.labels() for each in measured]
    differ = [key for key in labels[0] if len({str(label[key]) for label in labels}) > 1]
    return ["\n".join(f"{key} {label[key]}" for key in differ) for label in labels]


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        write(file)
    os.replace(temporary, path)


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            " and changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
