"""What a rank prints is also in its file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_lpc.training.rank_log import close_rank_log, log_step, open_rank_log


def test_output_and_errors_go_to_the_terminal_and_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout, sys.stderr
    open_rank_log(str(tmp_path / "logs"), 3)
    print("on its way")
    print("lost", file=sys.stderr)
    log_step(7, {"loss": 0.5, "step_seconds": 2.0})
    text = (tmp_path / "logs" / "rank_00003.log").read_text()
    close_rank_log()
    print("later")
    assert (sys.stdout, sys.stderr) == before
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("on its way\nlater\n", "lost\n"), "steps are only in the file"
    assert text.startswith("on its way\nlost\n")
    assert text.endswith(" step 7 done: loss 0.5, 2.0 s\n"), "it is up to date while the rank runs"


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for line in ("first", "second"):
        open_rank_log(str(tmp_path), 0)
        print(line)
        close_rank_log()
    assert (tmp_path / "rank_00000.log").read_text() == "first\nsecond\n"


def test_nothing_without_a_folder() -> None:
    before = sys.stdout
    open_rank_log(None, 0)
    log_step(1, {})
    assert sys.stdout is before
