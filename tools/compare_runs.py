"""Last evaluation of one or several runs as a table.

    python tools/compare_runs.py plain=runs/quickstart/plain lpc=runs/quickstart/lpc

A held-out set and the latent under which it was judged, KL(q || p) in nats a pair, and the codes that are some pair's most probable.
A run is a `metrics.jsonl` or the folder that holds one, with a label before it if wanted. `--output FILE.md` writes the table too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_lpc.terminal import wide_console
from megatron_lpc.training.metrics_file import METRICS_FILE, read_metrics

COLUMNS = {
    "rewards/accuracies": ("accuracy", "{:.1%}"),
    "rewards/margins": ("margin", "{:.3f}"),
    "loss": ("loss", "{:.3f}"),
    "lpc/kl": ("KL", "{:.3f}"),
    "lpc/perplexity": ("perplexity", "{:.2f}"),
    "lpc/active_codes": ("codes", "{:.0f}"),
}


def last_evaluations(runs: dict[str, Path]) -> list[list[str]]:
    """Rows (run, evaluated, step, and a cell for each of `COLUMNS`), the newest evaluation of each name.

    Raises:
        FileNotFoundError, ValueError: a file is not there, is not of metrics, or holds no evaluation.
    """
    rows = []
    for label, path in runs.items():
        newest: dict[str, dict[str, Any]] = {
            line["evaluation"]: line for line in read_metrics(path) if "evaluation" in line
        }
        if not newest:
            raise ValueError(f"{path}: holds no evaluation; give the run --valid-data NAME=FILE")
        for name, line in newest.items():
            cells = [form.format(line[metric]) if metric in line else "" for metric, (_, form) in COLUMNS.items()]
            rows.append([label, name, str(line["iteration"]), *cells])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """The table as Markdown."""
    lines = [_header(), ["---"] * len(_header()), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _header() -> list[str]:
    return ["run", "held out", "step", *(title for title, _ in COLUMNS.values())]


def _named(argument: str) -> tuple[str, Path]:
    label, equals, path = argument.rpartition("=")
    file = Path(path)
    return (label if equals else file.name), file / METRICS_FILE if file.is_dir() else file


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one line when a run cannot be read."""
    parser = argparse.ArgumentParser(description="Last evaluation of runs as a table.")
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", type=_named)
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    arguments = parser.parse_args(argv)
    try:
        rows = last_evaluations(dict(arguments.runs))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    table = Table()
    for heading in _header():
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide_console().print(table)
    if arguments.output:
        partial = arguments.output.with_suffix(".tmp")
        partial.write_text(markdown(rows), encoding="utf-8")
        partial.replace(arguments.output)


if __name__ == "__main__":
    main()
