"""The table of evaluations: newest only, cells by metric, clear errors."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "compare_runs.py"))


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_newest_evaluation_of_each_name(tmp_path: Path) -> None:
    old, new = (
        {"iteration": step, "evaluation": "test/prior", "rewards/accuracies": step / 10, "lpc/kl": 0.5}
        for step in (4, 8)
    )
    file = write(tmp_path / "metrics.jsonl", old, {"iteration": 6, "loss": 1.0}, new)
    (row,) = TOOL["last_evaluations"]({"lpc": file})
    assert row == ["lpc", "test/prior", "8", "80.0%", "", "", "0.500", "", ""]


def test_command_line_writes_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "metrics.jsonl", {"iteration": 1, "evaluation": "test/none", "rewards/accuracies": 0.5})
    TOOL["main"]([f"plain={tmp_path}", "--output", str(tmp_path / "table.md")])
    assert "50.0%" in capsys.readouterr().out
    assert (
        (tmp_path / "table.md")
        .read_text(encoding="utf-8")
        .splitlines()[2]
        .startswith("| plain | test/none | 1 | 50.0% |")
    )


@pytest.mark.parametrize(
    ("lines", "message"), [(None, "No such file"), ([{"iteration": 1, "loss": 2.0}], "holds no evaluation")]
)
def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[dict] | None, message: str) -> None:
    if lines is not None:
        write(tmp_path / "metrics.jsonl", *lines)
    with pytest.raises(SystemExit) as stop:
        TOOL["main"]([str(tmp_path / "metrics.jsonl")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
