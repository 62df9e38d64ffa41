"""The table of recovery: reports of several runs, seed by seed, as Markdown.

    python examples/recovery/table.py runs/recovery plain lpc

reads runs/recovery/plain/seed*/report.json and the like, which `megatron_lpc.evaluate` wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("KL, nats", "bits of 1", "disagree: support", "disagree: prior", "agree: support", "agree: prior")


def cells(report: dict[str, Any]) -> list[str]:
    """One seed: KL(q || p) and what codes tell of the annotator, over disagreeing pairs; accuracies. Without codes, of the one latent."""
    agree, disagree = report["data"]["agree"], report["data"]["disagree"]
    codes = ["", ""]
    if disagree["information"]:
        codes = [f"{disagree['metrics']['prior']['lpc/kl']:.2f}", f"{disagree['information']['bits']:.2f}"]
    accuracies = []
    for found in (disagree, agree):
        own = found["metrics"].get("prior") or found["metrics"]["none"]
        support = f"{100 * found['support']['accuracy']['support']:.1f}" if found["support"] else ""
        accuracies += [support, f"{100 * own['rewards/accuracies']:.1f}"]
    return [*codes, *accuracies]


def main(root: Path, names: list[str]) -> None:
    """Print a row for each of the runs under `root`, its seeds divided by slashes."""
    print("| run |", " | ".join(COLUMNS), "|")
    print("| --- |" + " --- |" * len(COLUMNS))
    for name in names:
        files = sorted((root / name).glob("seed*/report.json"))
        if not files:
            raise SystemExit(f"error: {root / name}: holds no seed*/report.json; train and evaluate it first")
        seeds = [cells(json.loads(file.read_text(encoding="utf-8"))) for file in files]
        print("|", " | ".join([name, *(" / ".join(filter(None, column)) for column in zip(*seeds, strict=True))]), "|")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
