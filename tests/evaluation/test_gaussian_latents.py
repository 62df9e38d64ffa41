"""Gaussian latents of groups, pooled from support sets, on a tiny checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from launch import torchrun

from megatron_lpc.config import parse_args, with_options
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.evaluate import evaluate
from megatron_lpc.evaluation.options import SupportOptions, parse_command
from megatron_lpc.evaluation.support import draw_support
from megatron_lpc.training.setup import start_distributed, stop_distributed

SHAPE = (
    "--num-layers 2 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 "
    "--max-position-embeddings 128 --max-length 128 --init-method-std 0.1"
)
MODE = (
    "--latent-mode gaussian --latent-size 3 --posterior-context 1 --group-column annotator --codebook-init-std 0.3 "
    "--latent-lr 0.03"
)
BATCHES = "--micro-batch-size 4 --global-batch-size 8 --device cpu"
RUN = f"{SHAPE} {MODE} {BATCHES} --train-iters 3 --lr 0.01 --no-tensorboard".split()


@pytest.fixture(scope="module")
def run(make_world, tmp_path_factory):
    """Its last evaluations, and its configuration."""
    from megatron_lpc.train import train

    save = tmp_path_factory.mktemp("run")
    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    return train(parse_args([*world, *RUN, "--save", str(save)])), str(save / "config.yaml")


@pytest.fixture(scope="module")
def report(run, evaluation):
    return evaluation("--config", run[1], "--support-pairs", "2")


def test_report(run, report):
    results, _ = run
    assert set(results) == {f"{name}/{latent}" for name in ("agree", "disagree") for latent in ("prior", "posterior")}
    for name, found in report["data"].items():
        assert (found["information"], found["verdict"]) == (None, None)
        for latent in ("prior", "posterior"):
            assert found["metrics"][latent] == pytest.approx(results[f"{name}/{latent}"], abs=1e-9)
        assert set(found["support"]["accuracy"]) == {"prior", "posterior", "support"}


def test_a_group_has_the_mean_of_the_means_of_its_support_set(run):
    config = parse_command(["--config", run[1]]).config
    name, source = "disagree", config.data.valid_data["disagree"]
    scorer = CheckpointScorer(start_distributed(with_options(config, train_data=[source])))
    data = scorer.open(name, source)
    own = scorer.score(name, data, ("posterior",))
    assert own.latent_mean.shape == (len(data), 3)
    assert own.latent_mean.std(0).min() > 1e-3
    under_own = scorer.score(name, data, ("mixture",), own.latent_mean)
    torch.testing.assert_close(under_own.logps, own.logps, rtol=0, atol=1e-4)
    stop_distributed()

    groups = [str(group) for group in data.groups]
    expected = {group: own.latent_mean[indices].mean(0) for group, indices in draw_support(groups, 4, seed=0).items()}
    seen = []

    def spy(self, name, data, sources, mixture=None):
        seen.append((name, sources, mixture))
        return score(self, name, data, sources, mixture)

    with pytest.MonkeyPatch.context() as patch:
        score = CheckpointScorer.score
        patch.setattr(CheckpointScorer, "score", spy)
        evaluate(with_options(config, valid_data={name: source}), SupportOptions(pairs=4))
    (_, sources, none), (_, of_support, mixture) = seen
    assert (sources, none, of_support) == (("prior", "posterior"), None, ("mixture",))
    torch.testing.assert_close(mixture, torch.stack([expected[group] for group in groups]))


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        "--pack-to 256 --share-prompt",  # Ranks score different numbers of pairs per step.
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--pipeline-model-parallel-size 2",
    ],
)
def test_every_layout_reports_the_same(run, report, layout, tmp_path):
    output = tmp_path / "report.json"
    flags = ["--config", run[1], "--support-pairs", "2", "--output", str(output), *layout.split()]
    torchrun(2, "-m", "megatron_lpc.evaluate", *flags)
    other = json.loads(output.read_text())["data"]
    for name, expected in report["data"].items():
        assert other[name]["support"] == expected["support"]
        for latent, metrics in expected["metrics"].items():
            assert other[name]["metrics"][latent] == pytest.approx(metrics, rel=2e-6, abs=1e-5)
