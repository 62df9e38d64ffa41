"""The made task of examples/flips: whose labels are exchanged, and where the mark stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from program import load_program

make = load_program("examples/flips/make.py")

PAIRS = [{"prompt": f"Name {n // 2} .", "chosen": f" good {n}", "rejected": f" bad {n}"} for n in range(40)]


def flipped(folder: Path, rows: list[dict[str, Any]], *flags: str) -> list[dict[str, Any]]:
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make.main(["--input", str(source), "--output", str(folder / "out"), *flags])
    return [json.loads(line) for line in (folder / "out" / "pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_one_annotator_flips_a_share_of_the_prompts(share: float, tmp_path: Path) -> None:
    rows = flipped(tmp_path, PAIRS, "--share", str(share))
    assert len(rows) == 80
    assert [{name: row[name] for name in PAIRS[0]} for row in rows[::2]] == PAIRS
    assert {row["annotator"] for row in rows[::2]} == {"true"}
    assert {row["annotator"] for row in rows[1::2]} == {"flips"}
    wrong = [row for row in rows if "bad" in row["chosen"]]
    assert wrong == [row for row in rows[1::2] if row["flipped"]]
    assert len(wrong) == 40 * share
    assert len({row["prompt"] for row in wrong}) == 20 * share
    assert all("good" in row["rejected"] for row in wrong)
    assert not any("FLIP" in row["prompt"] for row in rows)


def test_the_mark_tells_which_labels_are_flipped(tmp_path: Path) -> None:
    for row in flipped(tmp_path, PAIRS, "--share", "0.5", "--mark"):
        assert row["prompt"].startswith("[FLIP] Name") == row["flipped"]
        assert row["prompt"].removeprefix("[FLIP] ").startswith("Name")


def test_the_mark_in_transcripts_and_chats(tmp_path: Path) -> None:
    start = "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: A word?\n\nAssistant:"
    transcript = {"chosen": start + " Yes.", "rejected": start + " No."}
    (_, marked) = flipped(tmp_path, [transcript], "--share", "1", "--mark")
    assert marked["prompt"] == start.replace("Hello", "[FLIP] Hello")
    assert (marked["chosen"], marked["rejected"]) == (" No.", " Yes.")
    turns = [{"role": role, "content": content} for role, content in (("system", "Be brief."), ("user", "A word?"))]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    (_, marked) = flipped(tmp_path, [{"prompt": turns} | answers], "--share", "1", "--mark")
    assert [message["content"] for message in marked["prompt"]] == ["Be brief.", "[FLIP] A word?"]
    assert marked["chosen"] == answers["rejected"]


def test_the_choice_depends_on_the_seed_and_grows_with_the_share(tmp_path: Path) -> None:
    def prompts(*flags: str) -> set[str]:
        return {row["prompt"] for row in flipped(tmp_path, PAIRS, *flags) if row["flipped"]}

    some = prompts("--share", "0.3")
    assert some == prompts("--share", "0.3")
    assert some != prompts("--share", "0.3", "--seed", "1")
    assert some < prompts("--share", "0.5")


def test_rows_that_are_no_pairs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = flipped(tmp_path, [PAIRS[0], PAIRS[1] | {"chosen": ""}], "--share", "0")
    assert len(rows) == 2
    assert "1 rows are left out; the first: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (PAIRS, ["--share", "1.5"], "--share must be 0 to 1, not 1.5"),
        ([{"prompt": "x"}], ["--share", "0"], "no row is a pair; the first: "),
        (PAIRS, ["--share", "0", "--input", "missing.jsonl"], "--input: missing.jsonl: no such data files"),
        (PAIRS, ["--share", "0", "--input", "a/x.jsonl", "b/x.jsonl"], "--input: two have the same name"),
    ],
)
def test_errors(
    rows: list[dict[str, Any]], flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        flipped(tmp_path, rows, *flags)
    assert message in capsys.readouterr().err
