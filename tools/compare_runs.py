"""The last evaluation of one or several runs as a table.

    python tools/compare_runs.py plain=runs/quickstart/plain lpc=runs/quickstart/lpc

The columns name the held-out set and the latent under which it was evaluated, KL(q || p) in nats per pair, and how many
codes are the most probable one of some pair. A run is a `metrics.jsonl` or the folder that holds one, with a label
before it if wanted; without one the folder's name labels it. `--output FILE.md` writes the table too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table, wide_console
from megatron_lpc.training.metrics_file import named_runs, read_metrics

COLUMNS = {
    "rewards/accuracies": ("accuracy", "{:.1%}"),
    "rewards/margins": ("margin", "{:.3f}"),
    "loss": ("loss", "{:.3f}"),
    "lpc/kl": ("KL", "{:.3f}"),
    "lpc/perplexity": ("perplexity", "{:.2f}"),
    "lpc/active_codes": ("codes", "{:.0f}"),
}


HEADINGS = ["run", "held out", "step", *(title for title, _ in COLUMNS.values())]


def last_evaluations(runs: dict[str, Path]) -> list[list[str]]:
    """Rows (run, evaluated, step, and a cell for each of `COLUMNS`), the latest evaluation of each name.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, or is not of metrics.
        UserError: a file holds no evaluation.
    """
    rows = []
    for label, path in runs.items():
        evaluations = [line for line in read_metrics(path) if "evaluation" in line]
        if not evaluations:
            raise UserError(f"{path}: holds no evaluation; give the run --valid-data NAME=FILE")
        latest = {line["evaluation"]: line for line in evaluations}
        rows += [_row(label, name, line) for name, line in latest.items()]
    return rows


def _row(label: str, name: str, line: dict[str, Any]) -> list[str]:
    cells = [form.format(line[metric]) if metric in line else "" for metric, (_, form) in COLUMNS.items()]
    return [label, name, str(line["iteration"]), *cells]


def _print_table(rows: list[list[str]]) -> None:
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide_console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when a run cannot be read."""
    with reports_errors():
        parser = ArgumentParser(description="The last evaluation of runs as a table.")
        parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN", help="metrics.jsonl, or its folder")
        parser.add_argument("--output", type=Path, help="Markdown file to write as well")
        arguments = parser.parse_args(argv)
        try:
            rows = last_evaluations(named_runs(arguments.runs))
        except (OSError, ValueError) as error:
            raise UserError(str(error)) from error
        _print_table(rows)
        if arguments.output:
            write_text(arguments.output, markdown_table(HEADINGS, rows, left=2))


if __name__ == "__main__":
    main()
