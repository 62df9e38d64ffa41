"""How programs name the runs whose metrics they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lpc.command_line import UserError
from megatron_lpc.training.metrics_file import METRICS_FILE, named_runs


def test_a_given_label_names_a_run(tmp_path: Path) -> None:
    assert named_runs([f"plain={tmp_path}"]) == {"plain": tmp_path / METRICS_FILE}


def test_a_run_without_a_label_is_named_after_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "lpc" / METRICS_FILE
    file.parent.mkdir()
    for argument in (file, file.parent):
        assert named_runs([str(argument)]) == {"lpc": file}


def test_runs_keep_their_order(tmp_path: Path) -> None:
    assert list(named_runs([f"z={tmp_path}", f"a={tmp_path}"])) == ["z", "a"]


def test_two_runs_of_one_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two runs are called 'run'; tell them apart with LABEL=RUN"):
        named_runs([f"run={tmp_path}", f"run={tmp_path / 'other'}"])
