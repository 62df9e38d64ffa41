"""Votes on arguments: read from hostile and from honest XML, split by topic, and predicted from scored arguments."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from program import load_program

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.convarg import evaluate, features, mixture, prepare, score
from examples.convarg.argument_pairs import Argument, ArgumentPair, read_file, read_folder
from examples.convarg.figures import calibration_error, hits, mean_over_workers
from examples.convarg.predictions import (
    Scores,
    draw_support,
    longer_wins,
    majority_of_others,
    read_votes,
)
from megatron_lpc.config import parse_args
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.options import parse_command
from megatron_lpc.evaluation.pair_table import Responses
from megatron_lpc.losses import implicit_rewards
from megatron_lpc.train import train
from megatron_lpc.training.setup import stop_distributed

ROOT = Path(__file__).parents[2]
TOPICS = ("Books", "Cats", "Dogs", "Eggs")
STANCES = ("Yes", "No")


def _xml(topic: str, stance: str, votes: str = "a1 a1 a2 equal") -> str:
    """Three arguments in two pairs; workers w0, w1 ... vote on each."""

    def argument(side: str, name: int) -> str:
        text = f"{topic} &amp; {stance}" + " more" * name
        return f"<{side}><stance>{stance}</stance><text>{text}</text><id>arg{name}</id></{side}>"

    assignments = "".join(
        f"<mTurkAssignment><turkID>w{number}</turkID><value>{vote}</value></mTurkAssignment>"
        for number, vote in enumerate(votes.split())
    )
    pairs = "".join(
        f"<annotatedArgumentPair>{argument('arg1', first)}{argument('arg2', second)}"
        f"<debateMetaData><title>{topic}</title></debateMetaData>"
        f"<mTurkAssignments>{assignments}</mTurkAssignments></annotatedArgumentPair>"
        for first, second in ((1, 2), (3, 1))
    )
    return f"<?xml version='1.0' encoding='utf-8'?><list>{pairs}</list>"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "xml"
    folder.mkdir()
    for topic in TOPICS:
        for stance in STANCES:
            (folder / f"{topic}_{stance}.xml").write_text(_xml(topic, stance), encoding="utf-8")
    return folder


def test_pairs_of_a_folder(corpus: Path) -> None:
    pairs = read_folder(corpus)
    assert len(pairs) == 16
    first = pairs[0]
    assert (first.topic, first.stance, first.debate) == ("Books", "No", "Books_No")
    assert [argument.name for argument in first.arguments] == ["arg1", "arg2"]
    assert first.arguments[1].text == "Books & No more more"
    assert first.votes == (("w0", "a1"), ("w1", "a1"), ("w2", "a2"), ("w3", "equal"))


ENTITY = "<!DOCTYPE list [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;'>]><list>&b;</list>"
EXTERNAL = "<!DOCTYPE list SYSTEM 'file:///etc/hostname'><list/>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTITY, "bad.xml, line 1: declares a document type"),
        (EXTERNAL, "bad.xml, line 1: declares a document type"),
        ("<list>\n<a></list>", "bad.xml, line 2: mismatched tag"),
        ("", "bad.xml, line 1: no element found"),
        (_xml("Books", "Yes").replace("a1</value>", "a3</value>", 1), "has the vote 'a3', not a1, a2 or equal"),
        (
            _xml("Books", "Yes").replace("<title>Books</title>", ""),
            "<annotatedArgumentPair> has no <debateMetaData/title>",
        ),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "bad.xml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["--input", str(tmp_path), "--output", str(tmp_path / "data")])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--folds", "4"), "--folds 4: must be from 2 to 3"),
        (("--folds", "2", "--fold", "2"), "--fold 2: must be from 0 to 1"),
    ],
)
def test_folds_that_do_not_fit(
    corpus: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["--input", str(corpus), "--output", str(corpus / "data"), *flags])
    assert message in capsys.readouterr().err


def _prepared(corpus: Path, fold: int = 0) -> Path:
    output = corpus.parent / f"data-{fold}"
    prepare.main(["--input", str(corpus), "--output", str(output), "--folds", "3", "--fold", str(fold)])
    return output


def _rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_each_strict_vote_is_a_row_and_each_topic_in_one_part(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = _prepared(corpus)
    said = capsys.readouterr().out
    assert "left out: 16 votes that call both arguments equal" in said
    parts = {part: _rows(data / f"{part}.jsonl") for part in prepare.PARTS}
    topics = {part: {row["debate"].partition("_")[0] for row in rows} for part, rows in parts.items()}
    assert sorted(chain(*topics.values())) == sorted(TOPICS)
    assert sum(map(len, parts.values())) == 16 * 3
    row = next(row for row in parts["train"] if row["worker"] == "w2")
    assert row["chosen_argument"] == "arg2", "w2 votes a2"
    assert row["chosen"].endswith("more more")
    assert "more" not in row["prompt"]
    stance = row["debate"].partition("_")[2]
    assert row["prompt"].endswith(f"side: {stance}\n\n")


def test_folds_test_every_topic_once(corpus: Path) -> None:
    tested = [{row["debate"] for row in _rows(_prepared(corpus, fold) / "test.jsonl")} for fold in range(3)]
    assert sorted(chain(*tested)) == sorted(f"{topic}_{stance}" for topic in TOPICS for stance in STANCES)


def test_all_arguments_stand_in_the_cover(corpus: Path) -> None:
    rows = _rows(_prepared(corpus) / "all.jsonl")
    assert len(rows) == 8 * 2
    stand = {(row["debate"], row[f"{side}_argument"]) for row in rows for side in ("chosen", "rejected")}
    assert len(stand) == 8 * 3


@pytest.mark.parametrize("number", [3, 4])
def test_arguments_of_the_same_text_are_no_pair(number: int) -> None:
    texts = ["one text", "one text", "another", "a third"][:number]
    arguments = [Argument(name=f"arg{index}", text=text) for index, text in enumerate(texts)]
    pairs = [
        ArgumentPair(debate="d", topic="t", stance="s", arguments=both, votes=(("w0", "a1"),))
        for both in pairwise(arguments)
    ]
    assert list(prepare.rows(pairs[0])) == []
    assert len(list(prepare.rows(pairs[1]))) == 1
    cover = list(prepare.cover(pairs))
    assert all(row["chosen"] != row["rejected"] for row in cover)
    assert {row[f"{side}_argument"] for row in cover for side in ("chosen", "rejected")} == {a.name for a in arguments}


def test_rules(corpus: Path) -> None:
    votes = [vote for vote in read_votes(_prepared(corpus) / "train.jsonl") if vote.debate == "Books_Yes"]
    votes = votes or read_votes(_prepared(corpus) / "train.jsonl")[:6]
    by = {(vote.worker, vote.chosen.rpartition("/")[2]): index for index, vote in enumerate(votes)}
    longer, others = longer_wins(votes), majority_of_others(votes)
    assert longer[by["w0", "arg1"]] == 0
    assert longer[by["w2", "arg2"]] == 1
    assert others[by["w0", "arg1"]] == 0.5, "one other each"
    assert others[by["w2", "arg2"]] == 0


def _scores(data: Path, file: Path, with_codes: bool) -> Path:
    """Under code 0 more words are better, under code 1 fewer are; without codes, more are."""
    arguments, priors = {}, {}
    for row in _rows(data / "all.jsonl"):
        for side in ("chosen", "rejected"):
            words = len(row[side].split())
            rewards = {"codes": [4.0 * words, -4.0 * words]} if with_codes else {"continuous": 1.0 * words}
            arguments[f"{row['debate']}/{row[f'{side}_argument']}"] = rewards
        priors[row["debate"]] = [float(np.log(0.6)), float(np.log(0.4))] if with_codes else []
    file.write_text(json.dumps({"arguments": arguments, "log_prior": priors}), encoding="utf-8")
    return file


def test_the_exact_posterior_finds_the_worker(corpus: Path, tmp_path: Path) -> None:
    data = _prepared(corpus)
    scores = Scores(_scores(data, tmp_path / "scores.json", with_codes=True))
    # w0 chooses the shorter argument in the first pair of a debate, and the longer one in the second.
    votes = [vote for vote in read_votes(data / "test.jsonl") if vote.worker == "w0"]
    support = draw_support(read_votes(data / "train.jsonl"), 0)["w0"]
    shorter = [vote for vote in support if vote.characters[0] < vote.characters[1]]
    before, after = scores.without_worker(votes), scores.with_support(votes, shorter[:1])
    is_longer = np.array([vote.characters[0] > vote.characters[1] for vote in votes])
    margin = 4.0 * np.array([2 if vote.chosen.endswith("arg3") else 1 for vote in votes])
    right = 1 / (1 + np.exp(-margin))
    assert before == pytest.approx(
        np.where(is_longer, 0.6 * right + 0.4 * (1 - right), 0.4 * right + 0.6 * (1 - right))
    )
    odds = 0.4 * (1 / (1 + np.exp(-4))) / (0.6 * (1 / (1 + np.exp(4))))
    weight = odds / (1 + odds)
    assert after == pytest.approx(
        np.where(is_longer, (1 - weight) * right + weight * (1 - right), weight * right + (1 - weight) * (1 - right))
    )


def test_the_table(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = _prepared(corpus)
    files = [
        f"plain={_scores(data, tmp_path / 'plain.json', with_codes=False)}",
        f"codes={_scores(data, tmp_path / 'codes.json', with_codes=True)}",
    ]
    capsys.readouterr()
    command = ["--data", str(data), "--scores", *files, "--baseline", "plain", "--support", "0", "2"]
    evaluate.main([*command, "--output", str(tmp_path / "report.json")])
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["support"]) for row in report["rows"]] == [
        ("longer", 0), ("others", 0), ("plain", 0), ("codes", 0), ("codes", 2)
    ]  # fmt: skip
    rows = {(row["method"], row["support"]): row for row in report["rows"]}
    # Of the two pairs of a debate w0 and w1 choose the longer argument in one, w2 in the other.
    assert rows["plain", 0]["per_worker"] == {"w0": 0.5, "w1": 0.5, "w2": 0.5}
    assert rows["codes", 0]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert f"{report['votes']:,} votes of 3 workers" in said
    assert "| plain | 0 | 50.0% (50.0 to 50.0) |" in said
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([*command[:-2], "50"])
    assert "--support 50: no worker of test.jsonl has as many votes in train.jsonl" in capsys.readouterr().err


def test_votes_of_all_folds_and_seeds_are_in_one_table(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second seed has the opposite scores, so that of each vote one seed is right."""
    folders = [_prepared(corpus, fold) for fold in range(3)]
    for folder in folders:
        _scores(folder, folder / "it-1.json", with_codes=False)
        content = json.loads((folder / "it-1.json").read_text(encoding="utf-8"))
        for rewards in content["arguments"].values():
            rewards["continuous"] *= -2
        (folder / "it-2.json").write_text(json.dumps(content), encoding="utf-8")
    command = ["--data", *map(str, folders), "--support", "0", "--baseline", "one", "--seeds", "1", "2"]
    report = tmp_path / "report.json"
    evaluate.main([*command, "--scores", "one=it-1.json", "both=it-{seed}.json", "--output", str(report)])
    found = json.loads(report.read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in found["rows"]}
    assert found["votes"] == sum(len(_rows(folder / "test.jsonl")) for folder in folders)
    first, second = rows["both"]["per_seed"]
    assert rows["one"]["per_seed"] == [first]
    assert (first, second) == pytest.approx((0.5, 0.5)), "half of the votes are for the longer argument"
    assert set(rows["both"]["per_worker"].values()) == {0.5}
    assert rows["one"]["log_loss"] == pytest.approx(_mean_loss(folders, 1.0))
    assert rows["both"]["log_loss"] == pytest.approx((_mean_loss(folders, 1.0) + _mean_loss(folders, -2.0)) / 2)
    gain = rows["both"]["log_loss_gain"]["value"]
    assert gain == pytest.approx(rows["one"]["log_loss"] - rows["both"]["log_loss"])
    assert "| both | 0 | 50.0% (50.0 to 50.0) |" in capsys.readouterr().out


def test_gains_over_the_baseline_and_over_no_votes() -> None:
    probabilities = {
        ("plain", 0): [0.6, 0.6, 0.6, 0.6],
        ("lpc", 0): [0.9, 0.2, 0.2, 0.2],
        ("lpc", 8): [0.9, 0.9, 0.2, 0.9],
    }
    rows = [
        evaluate.Row(method=method, support=support, probabilities=np.array([values]))
        for (method, support), values in probabilities.items()
    ]
    _, without, with_votes = evaluate.compared(rows, "plain", ["a", "a", "b", "b"])
    assert (without["gain"]["value"], without["personal_gain"]["value"]) == (-0.75, 0)
    assert (with_votes["gain"]["value"], with_votes["personal_gain"]["value"]) == (-0.25, 0.5)


def _mean_loss(folders: list[Path], scale: float) -> float:
    """Of rewards that are `scale` times the number of words."""
    rows = [row for folder in folders for row in _rows(folder / "test.jsonl")]
    margins = [scale * (len(row["chosen"].split()) - len(row["rejected"].split())) for row in rows]
    return float(np.log1p(np.exp(-np.array(margins))).mean())


def test_a_mixture_finds_types_of_workers() -> None:
    """Half of the workers choose by a feature, half against it; one model for all learns nothing of it."""
    rng = np.random.default_rng(0)
    taste = np.repeat([1.0, -1.0], 20)
    worker = np.repeat(np.arange(40), 150)
    differences = rng.normal(size=(6000, 2))
    likely = 1 / (1 + np.exp(-3 * taste[worker] * differences[:, 0] - 2 * differences[:, 1]))
    differences *= np.where(rng.random(6000) < likely, 1.0, -1.0)[:, None]
    names = [f"w{number}" for number in worker]
    one = mixture.fit(differences, names, 1, precision=1.0)
    assert abs(one.weights[0, 0]) < 0.3 < 0.8 < one.weights[0, 1]
    two = mixture.fit(differences, names, 2, precision=1.0)
    lower, upper = sorted(two.weights[:, 0])
    assert lower < -1
    assert upper > 1
    assert np.exp(two.log_prior) == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("codes", [1, 2])
def test_scores_of_a_mixture(corpus: Path, tmp_path: Path, codes: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With hidden states that tell which argument has more words, from the corpus to the table."""
    data, states = _prepared(corpus), tmp_path / "states.json"
    found = {name: [float(len(text.split())), 0.0] for name, _, text in features.arguments(_rows(data / "all.jsonl"))}
    states.write_text(json.dumps(found), encoding="utf-8")
    flags = ["--data", str(data), "--codes", str(codes), "--components", "1"]
    mixture.main([*flags, "--states", str(states), "--output", str(data / "mixture.json")])
    evaluate.main(["--data", str(data), "--scores", "it=mixture.json", "--baseline", "it", "--support", "0", "2"])
    assert capsys.readouterr().out.count("| it |") == codes
    states.write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        mixture.main([*flags, "--states", str(states), "--output", str(data / "mixture.json")])
    assert "let features.py read" in capsys.readouterr().err


def test_surface_of_a_text() -> None:
    short, long = features.surface('hm, "ok"!'), features.surface("You SAID so?\nSee http://a.b and say so")
    assert len(short) == len(long) == 14
    assert short[0] == pytest.approx(np.log(9))
    assert short[2:5] == [9, 4, 0]
    assert short[6:13] == [1, 0, 1, 0, 0, 2, 1]
    assert long[4:] == pytest.approx([1, 6 / 38, 0, 1, 0, 1, 1, 0, 0, 1])


def test_mean_states_are_of_the_argument_after_its_prompt(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "Say": 1, "it": 2, "is": 3, "so": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    network = LlamaModel(LlamaConfig(vocab_size=5, **sizes)).eval()
    network.save_pretrained(tmp_path)
    found = features.mean_states(tmp_path, 2, [("d/a", "Say it ", "is so is"), ("d/b", "Say it ", "so")])
    with torch.no_grad():
        states = network(torch.tensor([[1, 2, 3, 4, 3]]), output_hidden_states=True).hidden_states[2]
    assert found["d/a"] == pytest.approx(states[0, 2:].mean(0).tolist(), abs=1e-6)
    assert found["d/b"] != found["d/a"]


def test_principal_components_are_of_the_training_arguments() -> None:
    states = np.random.default_rng(0).normal(size=(40, 3)) @ np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1.0]])
    is_training = np.arange(40) < 30
    found = features.principal_components(states, is_training, 2)
    assert found[:30].std(0)[0] == pytest.approx(1)
    assert found[:30, 0] @ found[:30, 1] == pytest.approx(0, abs=1e-9)
    other = features.principal_components(np.where(is_training[:, None], states, 9.0), is_training, 2)
    assert other[:30] == pytest.approx(found[:30])


def test_intervals_are_over_workers() -> None:
    """Two workers of 100 votes each, one always right and one never: votes would give 0.43 to 0.57."""
    values = np.repeat([1.0, 0.0], 100)
    figure = mean_over_workers(values, ["a"] * 100 + ["b"] * 100)
    assert (figure.value, figure.low, figure.high) == (0.5, 0.0, 1.0)


def test_calibration_error() -> None:
    sure = np.array([0.9, 0.9, 0.9, 0.1])
    assert hits(sure).tolist() == [1, 1, 1, 0]
    assert calibration_error(sure) == pytest.approx(0.9 - 0.75)
    assert calibration_error(np.array([0.75, 0.75, 0.75, 0.25])) == pytest.approx(0)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text("<list/>", encoding="utf-8")
    assert read_file(tmp_path / "one.xml") == []


def _trained(corpus: Path, *flags: str) -> tuple[Path, Path]:
    """The data, and a run on them of a few steps."""
    data, run = _prepared(corpus), corpus.parent / "run"
    words = str(corpus.parent / "words")
    load_program("tools/train_tokenizer.py").train_tokenizer([str(data / "train.jsonl")], words, 290)
    options = {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
    options |= {"max_position_embeddings": 256, "max_length": 200, "train_iters": 4, "lr": 0.02}
    options |= {"train_data": data / "train.jsonl", "valid_data": f"all={data / 'all.jsonl'}", "save": run}
    options |= {"tokenizer_model": f"{words}.model", "data_cache_path": corpus.parent / "cache"}
    options |= {"group_column": "worker", "global_batch_size": 8}
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    train(parse_args([*given, *flags]))
    return data, run


@pytest.mark.parametrize(
    ("flags", "latents"),
    [
        ("--latent-mode none", {"none": 1}),
        ("--codebook-size 3 --posterior-context 1", {"prior": 1, "codes": 3}),
        # Two workers of test.jsonl vote alike, and one does not.
        ("--latent-mode embedding", {"prior": 1, "support": 3}),
        ("--latent-mode gaussian --posterior-context 1", {"prior": 1, "support": 3}),
    ],
)
def test_scores_of_a_trained_model(
    corpus: Path, capsys: pytest.CaptureFixture[str], flags: str, latents: dict[str, int]
) -> None:
    """From a training to the table, on a corpus of a few words."""
    data, run = _trained(corpus, *flags.split())
    file = run / "scores.json"
    size = ["--support-pairs", "2"] if "support" in latents else []
    score.main(["--config", str(run / "config.yaml"), "--output", str(file), *size])
    scores = json.loads(file.read_text(encoding="utf-8"))
    assert len(scores["arguments"]) == 8 * 3
    rewards = list(scores["arguments"].values())
    assert all(of_argument.keys() == latents.keys() for of_argument in rewards)
    for latent, number in latents.items():
        values = np.array([of_argument[latent] for of_argument in rewards]).reshape(len(rewards), -1)
        assert values.shape[1] == number
        assert np.isfinite(values).all()
        assert values.std() > 0
    priors = np.array(list(scores["log_prior"].values()))
    assert len(priors) == 8
    assert np.exp(priors).sum(1) == pytest.approx(1) if "codes" in latents else priors.size == 0
    capsys.readouterr()
    command = ["--data", str(data), "--scores", f"it={file}", "--baseline", "it", "--support", "0", "2"]
    evaluate.main(command)
    assert capsys.readouterr().out.count("| it |") == len(latents)
    if "support" not in latents:
        return
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([*command, "--seed", "1"])
    assert "scores.json: has no latent from these 2 votes of w" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        score.main(["--config", str(run / "config.yaml"), "--output", str(file), "--support-pairs", "5"])
    stop_distributed()
    assert "--support-pairs 5: no worker has as many votes" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["embedding", "gaussian --posterior-context 1"])
def test_the_latent_of_a_worker_is_that_of_the_library(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """An evaluation with the same support sets has the same margins of the test pairs."""
    data, run = _trained(corpus, "--latent-mode", *mode.split(), "--codebook-lr", "0.3")
    file = run / "scores.json"
    score.main(["--config", str(run / "config.yaml"), "--output", str(file), "--support-pairs", "1", "3"])
    scores = Scores(file)
    votes, given = read_votes(data / "test.jsonl"), read_votes(data / "train.jsonl")
    support = draw_support(given, 0)
    places = {vote: index for index, vote in enumerate(given)}
    library = importlib.import_module("megatron_lpc.evaluation.evaluate")
    command = ["--config", str(run / "config.yaml"), "--support-data", str(data / "train.jsonl")]
    tables = []

    def spy(self, name, data, sources, mixture=None):
        table = library_score(self, name, data, sources, mixture)
        tables.append(table)
        return table

    library_score = CheckpointScorer.score
    monkeypatch.setattr(CheckpointScorer, "score", spy)
    found = {0: np.concatenate([scores.without_worker([vote]) for vote in votes])}
    for size in (1, 3):
        drawn = {worker: [places[vote] for vote in of[:size]] for worker, of in support.items()}
        monkeypatch.setattr(library, "draw_support", lambda groups, pairs, seed, drawn=drawn: drawn)
        told = parse_command([*command, "--valid-data", f"test={data / 'test.jsonl'}"])
        library.evaluate(told.config, told.support)
        of = Responses.under_latent(tables[-1], 0)
        rewards = implicit_rewards(told.config.loss, of.logps, of.reference_logps, of.response_length)
        probabilities = (rewards.chosen - rewards.rejected).sigmoid().numpy()
        found[size] = np.concatenate([scores.with_support([vote], support[vote.worker][:size]) for vote in votes])
        assert found[size] == pytest.approx(probabilities, abs=1e-5)
    assert min(abs(found[one] - found[other]).max() for one, other in ((0, 1), (0, 3), (1, 3))) > 1e-3


def test_what_is_of_no_latent_of_a_worker_is_refused(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = _trained(corpus, "--codebook-size", "3", "--posterior-context", "1")
    for flags in (["--support-pairs", "2"], ["--support-seed", "1"]):
        with pytest.raises(SystemExit, match="2"):
            score.main(["--config", str(run / "config.yaml"), "--output", str(run / "scores.json"), *flags])
        assert "drop it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_example_in_a_few_steps(tmp_path: Path) -> None:
    """From the corpus to the table; the corpus is where CONVARG_XML says."""
    xml = os.environ.get("CONVARG_XML")
    if xml is None:
        pytest.skip("CONVARG_XML does not name the folder UKPConvArg1-full-XML")
    command = ["bash", str(ROOT / "examples" / "convarg" / "run.sh"), xml, "--train-iters", "2"]
    variables = os.environ | {"OUT": str(tmp_path), "FOLDS": "0", "METHODS": "lpc"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"]
    found = {(row["method"], row["support"]): row["accuracy"]["value"] for row in rows}
    assert {support for method, support in found if method == "plain"} == {0}
    assert {support for method, support in found if method == "lpc"} == {0, 8, 50}
    assert 0.6 < found["longer", 0] < found["logistic", 0] < found["others", 0] < 0.85
