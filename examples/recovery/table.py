"""The table of recovery: reports of several runs, seed by seed, as Markdown.

    python examples/recovery/table.py runs/recovery plain lpc

reads runs/recovery/plain/seed*/report.json and the like, which `megatron_lpc.evaluate` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.terminal import markdown_table

COLUMNS = ("KL, nats", "bits of 1", "disagree: support", "disagree: prior", "agree: support", "agree: prior")


def cells(report: dict[str, Any]) -> list[str]:
    """The cells of one seed, in the order of `COLUMNS`; empty where a model without codes has no such figure.

    KL(q || p) and the bits that codes tell of the annotator are over the disagreeing pairs.
    """
    disagree = report["data"]["disagree"]
    kl, bits = "", ""
    if disagree["information"]:
        kl = f"{disagree['metrics']['prior']['lpc/kl']:.2f}"
        bits = f"{disagree['information']['bits']:.2f}"
    return [kl, bits, *_accuracies(disagree), *_accuracies(report["data"]["agree"])]


def _accuracies(found: dict[str, Any]) -> tuple[str, str]:
    """Under support, and under the prior or the only latent; in percent."""
    support = f"{100 * found['support']['accuracy']['support']:.1f}" if found["support"] else ""
    metrics = found["metrics"].get("prior") or found["metrics"]["none"]
    return support, f"{100 * metrics['rewards/accuracies']:.1f}"


def row(root: Path, name: str) -> list[str]:
    """The row of one run, its seeds divided by slashes.

    Raises:
        UserError: it has not been evaluated.
    """
    files = sorted((root / name).glob("seed*/report.json"))
    if not files:
        raise UserError(f"{root / name}: holds no seed*/report.json; train and evaluate it first")
    seeds = [cells(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    columns = zip(*seeds, strict=True)
    return [name, *(" / ".join(filter(None, column)) for column in columns)]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when a run has no report."""
    with reports_errors():
        parser = ArgumentParser(description="The table of recovery.")
        parser.add_argument("root", type=Path, help="folder of the runs")
        parser.add_argument("names", nargs="+", metavar="NAME", help="run, a folder in the root")
        arguments = parser.parse_args(argv)
        rows = [row(arguments.root, name) for name in arguments.names]
        print(markdown_table(["run", *COLUMNS], rows, left=1 + len(COLUMNS)), end="")


if __name__ == "__main__":
    main()
