"""Under the latents of two annotators who differ in the length that they like, generated responses differ in length."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from program import load_program

from megatron_lpc.generate import main as generate
from megatron_lpc.personalize import main as personalize
from megatron_lpc.study.intervals import mean_interval
from megatron_lpc.train import main as train

WORDS = ("red", "blue", "green", "yellow", "white", "black", "seven", "three", "four", "nine")
LENGTHS = {"brief": range(2, 4), "verbose": range(8, 13)}
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def files(tiny_run, tmp_path_factory) -> Path:
    """Pairs to train on, 8 of each annotator for the latent, and 40 other prompts."""
    folder = tmp_path_factory.mktemp("lengths")
    draw = random.Random(3)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    def rows(count: int, *annotators: str) -> list[dict[str, str]]:
        found = []
        for number in range(count):
            annotator = annotators[number % len(annotators)]
            short, long = (words(draw.choice(LENGTHS[name])) for name in LENGTHS)
            chosen, rejected = (short, long) if annotator == "brief" else (long, short)
            found.append({"prompt": f"{words(4)}:", "chosen": chosen, "rejected": rejected, "annotator": annotator})
        return found

    for name, of_file in {
        "train": rows(320, *LENGTHS),
        **{annotator: rows(8, annotator) for annotator in LENGTHS},
        "prompts": rows(40, "brief"),
    }.items():
        lines = "".join(json.dumps(row) + "\n" for row in of_file)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    # As many pieces as make a token of each word.
    load_program("tools/train_tokenizer.py").train_tokenizer(
        [str(folder / "train.jsonl")], str(folder / "tokenizer"), vocab_size=300
    )
    return folder


def lengths(tiny_run, files: Path, rpo_alpha: float) -> dict[str, list[int]]:
    """Tokens of the greedy responses to all prompts under the latent of each annotator."""
    run = files / f"run-{rpo_alpha}"
    train(
        [
            *("--config", tiny_run.config, "--train-data", str(files / "train.jsonl"), "--group-column", "annotator"),
            *("--micro-batch-size", "16", "--global-batch-size", "16", "--train-iters", "100", "--eval-iters", "1"),
            *("--tokenizer-model", str(files / "tokenizer.model"), "--valid-data", f"all={files / 'prompts.jsonl'}"),
            *("--rpo-alpha", str(rpo_alpha), "--save", str(run)),
        ]
    )
    latents = []
    for annotator in LENGTHS:
        latents.append(str(run / f"{annotator}.safetensors"))
        personalize(["--load", str(run), "--pairs", str(files / f"{annotator}.jsonl"), "--output", latents[-1]])
    flags = [flag for latent in latents for flag in ("--latent", latent)]
    prompts, output = files / "prompts.jsonl", run / "responses.jsonl"
    generate(
        [
            *("--load", str(run), "--prompts", str(prompts), "--output", str(output), *flags),
            *("--max-new-tokens", str(NEW_TOKENS), "--batch-size", "40"),
        ]
    )
    found: dict[str, list[int]] = {name: [] for name in LENGTHS}
    for line in output.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["latent"]].append(row["num_tokens"])
    return found


@pytest.mark.slow
def test_fluent_codes_give_responses_of_the_length_that_an_annotator_likes(tiny_run, files):
    """The quick form of what docs/generate.md measures: with `rpo_alpha`, and not without."""
    fluent = lengths(tiny_run, files, rpo_alpha=0.3)
    assert len(fluent["brief"]) == len(fluent["verbose"]) == 40
    assert longer_under_verbose(fluent)
    assert not longer_under_verbose(lengths(tiny_run, files, rpo_alpha=0.0))


def longer_under_verbose(found: dict[str, list[int]]) -> bool:
    """Whether the 95% interval of the difference, prompt by prompt, lies above 0."""
    difference = mean_interval([long - short for long, short in zip(found["verbose"], found["brief"], strict=True)])
    assert difference.half_width is not None
    return difference.mean > difference.half_width
