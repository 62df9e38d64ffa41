"""`metrics.jsonl`: one JSON object a line, `iteration` (steps done, from 1) and the metrics of that step.

Lines of an evaluation also have `evaluation`, the name of what was evaluated. Numbers that are not finite are written as null, for
JSON has no word for them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends to a metrics file, each line whole and at once, so that a reader can follow a run.

    Lines of a run that went further than `start_iter` and is now resumed from there are dropped first: no step stands twice.

    Args:
        start_iter: steps done so far; 0 starts the file anew.

    Raises:
        ValueError: the file holds something else than metrics.
    """

    def __init__(self, path: Path, start_iter: int) -> None:
        _keep_until(path, start_iter)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, iteration: int, metrics: Mapping[str, float], evaluation: str | None = None) -> None:
        line: dict[str, Any] = {"iteration": iteration} | ({"evaluation": evaluation} if evaluation else {})
        line |= {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, null as NaN. A last line that a killed run left half written is left out.

    Raises:
        ValueError: any other line is not an object with an `iteration`; names file and line.
    """
    text = path.read_text(encoding="utf-8")
    # What follows the last line feed was cut off by a kill.
    whole = text[: text.rfind("\n") + 1].splitlines()
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            record = json.loads(line)
            record["iteration"] = int(record["iteration"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}:{number}: not a line of metrics, which is a JSON object with `iteration`: {line[:80]!r}"
            ) from None
        records.append({name: math.nan if value is None else value for name, value in record.items()})
    return records


def _keep_until(path: Path, start_iter: int) -> None:
    if not path.exists():
        return
    # The whole of a run that starts at 0 goes, its evaluation before the first step included.
    kept = [record for record in read_metrics(path) if start_iter > 0 and record["iteration"] <= start_iter]
    lines = [
        json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()})
        for record in kept
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
