"""The data of examples/paper: rows of UltraFeedback are split as they are, and read as pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import load_program

from megatron_lpc.config import DataConfig
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import Row, read_rows


def test_every_twentieth_row_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load_program("examples/paper/split.py")
    scores = [4.5, 7.0]
    rows = [
        {
            "source": "flan",
            "instruction": f"Why {number}?",
            "completions": [{"response": f"{score} ü", "overall_score": score} for score in scores],
        }
        for number in range(41)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module.main(["--input", str(source), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out == "38 rows to train on, 3 held out\n"
    train, held_out = (
        [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    )
    assert held_out == [rows[0], rows[20], rows[40]]
    assert train == [row for row in rows if row not in held_out]
    (first, *_) = read_rows(str(tmp_path / "out" / "train.jsonl"))
    assert isinstance(first, Row)
    pair = to_pair(first, DataConfig(data_format="ultrafeedback", group_column="source"))
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"], pair.group) == ("7.0 ü", "4.5 ü", "flan")
