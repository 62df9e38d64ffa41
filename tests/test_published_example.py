"""The data of examples/published: users of PersonalRewardBench are dealt out as in the benchmark, and read as pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from program import load_program

from megatron_lpc.config import DataConfig
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import Row, read_rows


@pytest.fixture(scope="module")
def program() -> Any:
    return load_program("examples/published/personal_reward_bench.py")


def row(user: str, split: str, number: int) -> dict[str, Any]:
    def said(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return {
        "user_id": user,
        "split": split,
        "context": said("user", f"Why {number}?"),
        "chosen": said("assistant", "Because."),
        "rejected": said("assistant", "No."),
        "agreement": 0.5,
    }


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def test_users_of_the_test_are_new(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [row("ann", "train", 1), row("ann", "test", 2)]
    test = [row("bob", "train", 3), row("bob", "val", 4), row("bob", "test", 5)]
    out = tmp_path / "out"
    program.main(["--input", str(write(tmp_path, train=train, test=test)), "--output", str(out)])
    assert capsys.readouterr().out == "2 rows in train.jsonl, 2 rows in support.jsonl, 1 rows in test.jsonl\n"
    (found,) = read_rows(str(out / "test.jsonl"))
    assert isinstance(found, Row)
    pair = to_pair(found, DataConfig(prompt_column="context", group_column="user_id"))
    assert (pair.prompt[0]["content"], pair.chosen[0]["content"], pair.group) == ("Why 5?", "Because.", "bob")


def test_other_data_are_refused(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}]
    for splits, message in (
        ({"train": [row("ann", "train", 1)], "test": [row("ann", "test", 2)]}, "1 users, ann the first, are in both"),
        ({"train": other, "test": other}, "a row lacks context, user_id, split; is this PersonalRewardBench"),
    ):
        with pytest.raises(SystemExit) as end:
            program.main(["--input", str(write(tmp_path, **splits)), "--output", str(tmp_path / "out")])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
