"""The program on a tiny checkpoint, in other parallel layouts, and on a trained run in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from browser import chromium, open_page
from launch import torchrun

from megatron_lpc.config import parse_args

SHAPE = (
    "--num-layers 2 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 "
    "--max-position-embeddings 128 --max-length 128"
)
HEAD = "--codebook-size 4 --codebook-init-std 1 --init-method-std 0.1 --group-column annotator"
BATCHES = "--micro-batch-size 8 --global-batch-size 8 --train-iters 2"
RUN = f"{SHAPE} {HEAD} {BATCHES} --device cpu --lr 0.01 --no-tensorboard".split()
SETTINGS = Path(__file__).parents[3] / "examples" / "recovery" / "lpc.yaml"


@pytest.fixture(scope="module")
def run(make_world, tmp_path_factory):
    """Folder of a run of two steps; codes and states come from it through the scorer."""
    from megatron_lpc.train import train

    save = tmp_path_factory.mktemp("run")
    train(parse_args([*make_world("--num-pairs", "48", "--num-eval-pairs", "48"), *RUN, "--save", str(save)]))
    return save


def _report(run: Path, output: Path, *flags: str) -> dict:
    from megatron_lpc.evaluation.report.__main__ import main

    main(["--load", str(run), "--support-pairs", "2", "--map", "pca", "--output", str(output), *flags])
    return json.loads((output / "report.json").read_text())


def test_a_run_folder_is_enough(run, tmp_path, monkeypatch):
    from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
    from megatron_lpc.evaluation.report import scored_pairs
    from megatron_lpc.model import unwrapped
    from megatron_lpc.model.head_parts import normalized

    seen = {}

    def spy(self):
        model = unwrapped(self._policy[0])
        model.latent_head.code_unit.mul_(2)  # That of fresh weights is 1. Pairs have been scored before.
        seen["codes"], seen["weight"] = (
            tensor.detach().double() for tensor in (model.latent_head.codes, model.lm_head_weight())
        )
        seen["prior"] = model.latent_head.prior
        return logits(self)

    logits = CheckpointScorer.code_logits
    monkeypatch.setattr(CheckpointScorer, "code_logits", spy)
    kept = []
    score = scored_pairs.score_for_report
    from megatron_lpc.evaluation.report import __main__ as program

    monkeypatch.setattr(program, "score_for_report", lambda *given: kept.append(score(*given)) or kept[0])
    found = _report(run, tmp_path / "out", "--source-column", "factor")
    (scored,) = kept
    # What a code adds to the logits, and the states by which prompts are laid out, against the model itself.
    vocabulary = scored.code_logits.size(1)
    torch.testing.assert_close(
        scored.code_logits, (seen["codes"] @ seen["weight"].T)[:, :vocabulary], rtol=1e-5, atol=1e-5
    )
    with torch.no_grad():
        prior = seen["prior"](normalized(scored.prompt_states.float())).double()
    assert prior.std(0).max() > 1e-4, "prompts have priors of their own"
    torch.testing.assert_close(prior, scored.table.prior_logits[scored.on_map], rtol=1e-4, atol=1e-5)
    assert found["about"]["data"] == {"agree": 12, "disagree": 36}
    assert found["about"]["source_of"] == "factor"
    assert sum(portrait["pairs"] for portrait in found["portraits"]) == 48
    assert found["curves"]["steps"] == 2
    source = next(each for each in found["associations"] if each["kind"] == "source")
    assert "quality" in source["labels"]
    assert sum(map(sum, source["counts"])) == 48
    example = found["portraits"][0]["examples"][0]
    assert example["prompt"].endswith(".")
    assert example["source"] in source["labels"]
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2", ""])
def test_every_parallel_layout_finds_the_same(run, tmp_path, layout):
    alone = _report(run, tmp_path / "alone")
    flags = ["--load", str(run), "--support-pairs", "2", "--map", "pca", "--output", str(tmp_path / "out")]
    torchrun(2, "-m", "megatron_lpc.evaluation.report", *flags, "--global-batch-size", "16", *layout.split())
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["associations"] == alone["associations"]
    assert found["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    for one, other in zip(found["portraits"], alone["portraits"], strict=True):
        assert (one["code"], one["pairs"], one["marks"]) == (other["code"], other["pairs"], other["marks"])
        for entry, same in zip(one["raised"], other["raised"], strict=True):
            assert entry["logit"] == pytest.approx(same["logit"], abs=1e-4)
    for one, other in zip(found["prompt_map"]["points"], alone["prompt_map"]["points"], strict=True):
        assert (one["x"], one["y"]) == pytest.approx((other["x"], other["y"]), abs=0.01)


@pytest.fixture(scope="module")
def trained(make_world, tmp_path_factory):
    """Folder of the report on a run of examples/recovery, and its JSON."""
    from megatron_lpc.train import train

    folder = tmp_path_factory.mktemp("trained")
    train(parse_args(["--config", str(SETTINGS), *make_world(), "--no-tensorboard", "--save", str(folder / "run")]))
    from megatron_lpc.evaluation.report.__main__ import main

    main(["--load", str(folder / "run"), "--source-column", "factor", "--output", str(folder / "report")])
    return folder / "report", json.loads((folder / "report" / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trained_run_names_its_annotators(trained):
    _, found = trained
    assert found["verdict"]["state"] == "active"
    group, source = found["associations"]
    assert group["information"]["bits"] > 0.4
    assert group["p_value"] == 0.001
    latents = {name: share["value"] for name, share in found["switching"]["latents"].items()}
    assert latents["support_exact"] > latents["shuffled"] + 0.25
    assert latents["shuffled"] > latents["swapped"] + 0.25
    assert source["kind"] == "source"
    likes = {
        "ada": {"furthermore", "indeed", "respectfully", "every"},
        "ben": {"hey", "dude", "plain", "gray", "cheers"},
    }
    told = {}
    for portrait in found["portraits"]:
        phrases = {mark["phrase"] for mark in portrait["marks"]["preferred"]}
        best = max(likes, key=lambda name: len(likes[name] & phrases))
        if likes[best] & phrases:
            told[best] = portrait
    assert set(told) == set(likes)
    for name, portrait in told.items():
        assert portrait["groups"][name] > 0.6 * portrait["pairs"]
    assert told["ada"]["longer"] > 3
    assert told["ben"]["longer"] < -3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.skipif(chromium() is None, reason="no Chromium to open the page with")
def test_a_browser_opens_the_page(trained, tmp_path, width, dark):
    page = open_page(trained[0] / "report.html", width, tmp_path, dark=dark)
    assert page.messages == []
    assert page.requests == []
    assert page.inner == width
    assert page.scroll == width
    assert page.wide == []
    assert (page.svgs, page.empty) == (5 + 3 + 1 + 2, 0)
    assert page.title.startswith("Codebook report")
