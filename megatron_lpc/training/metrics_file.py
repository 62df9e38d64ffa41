"""`metrics.jsonl`: one JSON object per line, `iteration` (steps done, from 1) and the metrics of that step.

Lines of an evaluation also have `evaluation`, the name of what was evaluated. Numbers that are not finite are written
as null, as JSON cannot express them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_lpc.command_line import UserError, WriteFailed
from megatron_lpc.config import ConfigError
from megatron_lpc.files import write_text
from megatron_lpc.outside.files import read_bytes
from megatron_lpc.outside.json_text import parse_json
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.outside.typed import check

METRICS_FILE = "metrics.jsonl"
_MAX_BYTES = 2**31


class MetricsFile:
    """Appends to a metrics file, each line whole and at once, so that a reader can follow a run.

    Lines of a run that went further than `start_iter` and is now resumed from there are dropped first, so that no step
    is there twice.

    Args:
        path: the file; its folder is made when it is missing.
        start_iter: steps done so far; 0 starts an empty file.
        is_complete: these are all steps, so that only the evaluation after the last is made, and its lines are dropped.

    Raises:
        ConfigError: the file holds something else than metrics.
    """

    def __init__(self, path: Path, start_iter: int, *, is_complete: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_repeated(path, start_iter, is_complete)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # Of a line that `write` could not write, which it has said.
            self._file.close()

    def write(self, iteration: int, metrics: Mapping[str, float], evaluation: str | None = None) -> None:
        """Append the metrics of one step, or of the evaluation called `evaluation` after that step.

        Raises:
            WriteFailed: the disk is full, for instance.
        """
        record: dict[str, Any] = {"iteration": iteration}
        if evaluation:
            record["evaluation"] = evaluation
        record |= {name: float(value) for name, value in metrics.items()}
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise WriteFailed.of(self._file.name, error) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, null as NaN. A last line that a killed run left half written is left out.

    Raises:
        ConfigError: any other line is not an object with an `iteration`; names file and line.
    """
    try:
        text = read_bytes(path, _MAX_BYTES).decode(errors="replace")
    except Malformed as error:
        raise ConfigError(error) from error
    # What follows the last line feed was cut off by a kill.
    lines = text[: text.rfind("\n") + 1].splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            check(record, {"iteration": int}, "it")
            check(record, dict[str, float | str | None], "it")
        except Malformed as error:
            raise ConfigError(
                f"{path}:{number}: not a line of metrics, which is a JSON object with `iteration` and numbers "
                f"({error}): {line[:80]!r}; remove that line"
            ) from None
        records.append({name: math.nan if value is None else value for name, value in record.items()})
    return records


def evaluations_after(path: Path, iteration: int) -> dict[str, dict[str, float]]:
    """Metrics of each evaluation after so many steps, by its name; empty where there is no such file.

    Raises:
        ConfigError: as `read_metrics`.
    """
    if not path.is_file():
        return {}
    return {
        record["evaluation"]: {name: value for name, value in record.items() if name not in ("iteration", "evaluation")}
        for record in read_metrics(path)
        if record["iteration"] == iteration and "evaluation" in record
    }


def named_runs(arguments: Iterable[str]) -> dict[str, Path]:
    """Label -> metrics file of arguments `[LABEL=]RUN`, in their order.

    Args:
        arguments: each RUN is a metrics file or the folder that holds `metrics.jsonl`; that folder's name is the label
            where none is given.

    Raises:
        UserError: two runs have the same label.
    """
    runs: dict[str, Path] = {}
    for argument in arguments:
        given_label, _, place = argument.rpartition("=")
        path = Path(place)
        file = path / METRICS_FILE if path.is_dir() else path
        label = given_label or file.resolve().parent.name
        if label in runs:
            raise UserError(f"two runs are called '{label}'; tell them apart with LABEL=RUN")
        runs[label] = file
    return runs


def _line(record: Mapping[str, Any]) -> str:
    """One line of the file."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _drop_repeated(path: Path, start_iter: int, is_complete: bool) -> None:
    if not path.exists():
        return
    records = read_metrics(path)
    # A run that starts at step 0 keeps nothing: an evaluation before the first step is of the other run as well.
    kept = [record for record in records if start_iter > 0 and record["iteration"] <= start_iter]
    if is_complete:
        kept = [record for record in kept if record["iteration"] < start_iter or "evaluation" not in record]
    write_text(path, "".join(_line(record) for record in kept))
