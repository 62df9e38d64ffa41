"""The generated pairs hold what they promise: the factors, the disagreement, the shares, the determinism."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from program import load_program


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("tools/make_preferences.py")


def small(**changes: Any) -> dict[str, Any]:
    return {"num_pairs": 240, "num_eval_pairs": 48} | changes


def both_labels(pairs: list[Any]) -> dict[str, list[Any]]:
    """The pairs of each prompt, whatever its mark."""
    by_prompt = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt.split(" : ")[-1]].append(pair)
    return by_prompt


def test_opposite_annotators_label_the_same_two_responses(tool: ModuleType) -> None:
    pairs = tool.make_pairs(tool.Recipe(**small()))["train"]
    for ada, ben in both_labels(pairs).values():
        assert {ada.annotator, ben.annotator} == {"ada", "ben"}
        assert ada.prompt == ben.prompt
        assert ada.chosen != ada.rejected
        if ada.factor == "quality":
            assert (ada.chosen, ada.rejected) == (ben.chosen, ben.rejected)
        else:
            assert (ada.chosen, ada.rejected) == (ben.rejected, ben.chosen)


def test_a_factor_is_in_the_words_and_the_label_follows_it(tool: ModuleType) -> None:
    """Read the poles back from the text alone."""
    words = {
        "warm": tool.ADJECTIVES["warm"],
        "dry": tool.ADJECTIVES["dry"],
        "formal": tool.OPENERS["formal"] + tool.CLOSERS["formal"],
        "casual": tool.OPENERS["casual"] + tool.CLOSERS["casual"],
        "garbled": tool.GARBAGE,
    }

    def poles(text: str) -> set[str]:
        found = {pole for pole, some in words.items() if set(some) & set(text.split())}
        return (
            found | {"long" if len(text.split()) == 16 else "short"} | ({"clean"} if "garbled" not in found else set())
        )

    for pair in tool.make_pairs(tool.Recipe(**small()))["train"]:
        chosen, rejected = poles(pair.chosen), poles(pair.rejected)
        factors, liked = pair.factor.split("+"), tool.liked_poles(tool.ANNOTATORS.index(pair.annotator))
        assert chosen ^ rejected == {pole for factor in factors for pole in tool.POLES[factor]}
        assert chosen - rejected == set(pair.pole.split("+")) == {liked[factor] for factor in factors}


def test_every_response_begins_with_a_space_and_is_short(tool: ModuleType) -> None:
    for pair in tool.make_pairs(tool.Recipe(**small()))["train"]:
        for text in (pair.chosen, pair.rejected):
            assert text[0] == " "
            assert text[1] != " "
            assert len(text.split()) in (10, 16)


def test_shares_are_exact(tool: ModuleType) -> None:
    splits = tool.make_pairs(tool.Recipe(**small(agree=0.5, marked=0.25, label_noise=0.125)))
    for split, size in (("train", 240), ("valid", 48), ("test", 48)):
        pairs = splits[split]
        assert len(pairs) == size
        assert sum(pair.factor == "quality" for pair in pairs) == size / 2
        assert sum(pair.marked for pair in pairs) == size / 4
        assert sum(pair.flipped for pair in pairs) == size / 8
        tastes = Counter(pair.factor for pair in pairs if pair.factor != "quality")
        assert len(tastes) == 7
        assert max(tastes.values()) - min(tastes.values()) <= 2


def test_a_mark_names_the_annotator(tool: ModuleType) -> None:
    for pair in tool.make_pairs(tool.Recipe(**small(marked=0.5)))["train"]:
        assert pair.prompt.startswith(f"for {pair.annotator} : ") == pair.marked


def test_a_flipped_label_prefers_the_other_response(tool: ModuleType) -> None:
    pairs = tool.make_pairs(tool.Recipe(**small(label_noise=0.25)))["train"]
    wrong = [pair for pair in pairs if pair.factor == "quality" and pair.pole == "garbled"]
    assert wrong == [pair for pair in pairs if pair.factor == "quality" and pair.flipped]
    assert wrong


def test_no_prompt_is_in_two_splits(tool: ModuleType) -> None:
    prompts = [set(both_labels(pairs)) for pairs in tool.make_pairs(tool.Recipe(**small(marked=0.5))).values()]
    assert [len(some) for some in prompts] == [120, 24, 24]
    assert len(set.union(*prompts)) == 168


def test_eight_annotators_have_eight_tastes_in_opposite_couples(tool: ModuleType) -> None:
    likes = [tool.liked_poles(annotator) for annotator in range(8)]
    assert likes[0] == {"tone": "warm", "formality": "formal", "length": "long", "quality": "clean"}
    assert likes[2] == {"tone": "warm", "formality": "casual", "length": "short", "quality": "clean"}
    assert len({tuple(some.values()) for some in likes}) == 8
    for one, other in zip(likes[::2], likes[1::2], strict=True):
        assert all((one[factor] == other[factor]) == (factor == "quality") for factor in tool.POLES)


@pytest.mark.parametrize(
    ("annotator", "first", "preferred"),
    [
        (0, {"tone": "warm", "formality": "casual"}, True),
        (1, {"tone": "warm", "formality": "casual"}, False),
        (0, {"tone": "dry", "formality": "formal"}, False),
        (0, {"tone": "dry", "formality": "formal", "length": "long"}, True),
        (2, {"tone": "dry", "formality": "formal", "length": "long"}, False),
        (7, {"quality": "clean"}, True),
    ],
)
def test_divided_tastes_go_by_majority_then_by_the_first(
    annotator: int, first: dict[str, str], preferred: bool, tool: ModuleType
) -> None:
    assert tool.prefers_first(annotator, first) == preferred


def test_opposite_annotators_never_agree_on_taste_with_eight_of_them(tool: ModuleType) -> None:
    pairs = tool.make_pairs(tool.Recipe(**small(num_annotators=8)))["train"]
    for labelled in both_labels(pairs).values():
        chosen = {pair.annotator: pair.chosen for pair in labelled}
        assert len(labelled) == 8
        for one, other in zip(tool.ANNOTATORS[::2], tool.ANNOTATORS[1::2], strict=True):
            assert (chosen[one] == chosen[other]) == (labelled[0].factor == "quality")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_any_two_of_the_first_four_annotators_disagree(number: int, tool: ModuleType) -> None:
    recipe = tool.Recipe(num_pairs=420 * number, num_eval_pairs=number, num_annotators=number, agree=0.0)
    labelled = [
        {pair.annotator: pair.chosen for pair in pairs}
        for pairs in both_labels(tool.make_pairs(recipe)["train"]).values()
    ]
    names = tool.ANNOTATORS[:number]
    for one, other in itertools.combinations(names, 2):
        disagree = sum(chosen[one] != chosen[other] for chosen in labelled) / len(labelled)
        expected = 1.0 if {one, other} in ({"ada", "ben"}, {"cleo", "dan"}) else 0.5
        assert disagree == pytest.approx(expected, abs=0.0715), "of seven sets of tastes, three or four"
    # Without knowing the annotator one is right on what most of them choose.
    most = sum(max(Counter(chosen.values()).values()) for chosen in labelled) / (number * len(labelled))
    assert most == pytest.approx(2 / 3 if number == 3 else 1 / 2)


def test_files_are_the_same_each_time_and_differ_by_seed(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-pairs", "240", "--num-eval-pairs", "48"]
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        tool.main(["--output", str(tmp_path / folder), "--seed", seed, *flags])
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["test.jsonl", "test_agree.jsonl", "test_disagree.jsonl", "train.jsonl", "valid.jsonl"]
    a, b, c = ([(tmp_path / folder / name).read_bytes() for name in names] for folder in "abc")
    assert a == b
    assert not any(one == other for one, other in zip(a, c, strict=True))

    rows = {name: [json.loads(line) for line in (tmp_path / "a" / name).read_text().splitlines()] for name in names}
    assert list(rows["train.jsonl"][0]) == [
        "prompt",
        "chosen",
        "rejected",
        "annotator",
        "factor",
        "pole",
        "marked",
        "flipped",
    ]
    assert all(row["factor"] == "quality" for row in rows["test_agree.jsonl"])
    assert not any(row["factor"] == "quality" for row in rows["test_disagree.jsonl"])
    assert len(rows["test_agree.jsonl"]) + len(rows["test_disagree.jsonl"]) == len(rows["test.jsonl"]) == 48

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["file", "pairs", "prompts", "agree", "marked", "flipped", "words"]
    assert printed[1].split()[:6] == ["train.jsonl", "240", "120", "60", "0", "0"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-annotators", "0"], "--num-annotators must be 1 to 8, not 0"),
        (["--num-annotators", "9"], "--num-annotators must be 1 to 8, not 9"),
        (["--num-pairs", "0"], "--num-pairs must be a positive multiple of --num-annotators 2, not 0"),
        (["--num-pairs", "7"], "--num-pairs must be a positive multiple of --num-annotators 2, not 7"),
        (["--num-eval-pairs", "3"], "--num-eval-pairs must be a positive multiple of --num-annotators 2, not 3"),
        (["--agree", "1.5"], "--agree must be 0 to 1, not 1.5"),
        (["--marked", "-0.1"], "--marked must be 0 to 1, not -0.1"),
        (["--label-noise", "0.6"], "--label-noise must be 0 to 0.5, not 0.6"),
        (["--num-pairs", "20000"], "--num-pairs and --num-eval-pairs ask for 10400 prompts; the language has 9216"),
    ],
)
def test_errors(
    flags: list[str], message: str, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--output", str(tmp_path / "out"), *flags])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file_is_refused(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(SystemExit):
        tool.main(["--output", str(taken)])
    assert f"--output {taken} is not a folder" in capsys.readouterr().err
