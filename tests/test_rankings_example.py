"""The made tasks of examples/rankings: who prefers what, and what can be had at most."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import load_program

Rows = list[dict[str, str]]


make = load_program("examples/rankings/make.py")
at_most = load_program("examples/recovery/at_most.py")
SMALL = ["--num-pairs", "240", "--num-eval-pairs", "80"]


def written(folder: Path, *flags: str) -> dict[str, Rows]:
    make.main([*flags, "--output", str(folder)])
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("task", "on_all", "on_divergent"), [("pets", 0.75, 0.5), ("two-peaks", 0.75, 0.5), ("four-peaks", 0.8125, 0.625)]
)
def test_what_can_be_had_without_knowing_the_annotator(
    task: str, on_all: float, on_divergent: float, tmp_path: Path
) -> None:
    files = written(tmp_path, task)
    without = {
        name: at_most.without_codes(at_most.read_labels(tmp_path / f"{name}.jsonl", "annotator"))
        for name in ("test", "test_divergent", "test_agree")
    }
    assert [len(files[name]) for name in ("train", "valid", "test", "test_divergent")] == [2400, 400, 400, 200]
    assert without["test_agree"] == 1
    assert (without["test"], without["test_divergent"]) == (on_all, on_divergent)


def test_pets_are_ranked(tmp_path: Path) -> None:
    kinds = {name: kind for kind, (names, _) in make.PETS.items() for name in names.split()}
    seen = set()
    for stem, rows in written(tmp_path, "pets", *SMALL).items():
        for row in rows:
            chosen, rejected = (kinds[row[column].split()[1]] for column in ("chosen", "rejected"))
            order = ["birds", *(["dogs", "cats"] if row["annotator"] == "ann" else ["cats", "dogs"]), "rabbits"]
            assert order.index(chosen) < order.index(rejected)
            assert (stem == "test_divergent") <= ({chosen, rejected} == {"cats", "dogs"})
            seen.add((row["annotator"], chosen, rejected))
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("task", "peaks"),
    [("two-peaks", {"ann": 8.5, "bob": 16}), ("four-peaks", {"ann": 4.75, "bob": 8.5, "cid": 12.25, "dora": 16})],
)
def test_the_amount_nearest_to_the_peak_is_preferred(task: str, peaks: dict[str, float], tmp_path: Path) -> None:
    for row in written(tmp_path, task, *SMALL)["train"]:
        peak = peaks[row["annotator"]]
        chosen, rejected = (make.AMOUNTS.index(row[column].strip()) + 1 for column in ("chosen", "rejected"))
        assert abs(chosen - peak) < abs(rejected - peak)


def test_all_annotators_label_each_prompt_and_no_prompt_is_in_two_files(tmp_path: Path) -> None:
    files = written(tmp_path, "four-peaks", *SMALL)
    prompts = {stem: {row["prompt"] for row in files[stem]} for stem in ("train", "valid", "test")}
    assert {stem: len(of) for stem, of in prompts.items()} == {"train": 60, "valid": 20, "test": 20}
    assert len(set.union(*prompts.values())) == 100
    assert len({(row["prompt"], row["annotator"]) for row in files["train"]}) == 240


def test_the_same_flags_give_the_same_files(tmp_path: Path) -> None:
    first, again, other = (
        written(tmp_path / name, "pets", *SMALL, "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert first == again
    assert all(first[stem] != other[stem] for stem in first)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-pairs", "12"], "--num-pairs must be a positive multiple of 8, not 12"),
        (["--divergent", "2"], "--divergent must be 0 to 1, not 2.0"),
        (["--num-pairs", "8000"], "ask for 4400 prompts; there are 3200"),
    ],
)
def test_errors(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make.main(["pets", "--output", str(tmp_path / "out"), *flags])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
