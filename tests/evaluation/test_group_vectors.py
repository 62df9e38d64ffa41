"""Vectors of groups: learned for the known ones, fitted to a support set for any; on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import torchrun

from megatron_lpc.config import ConfigError, parse_args, with_options
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.options import SupportOptions, parse_command
from megatron_lpc.evaluation.pair_table import Responses
from megatron_lpc.evaluation.support import draw_support
from megatron_lpc.losses import preference_loss
from megatron_lpc.training.setup import start_distributed, stop_distributed

SHAPE = (
    "--num-layers 4 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 "
    "--max-position-embeddings 128 --max-length 128 --init-method-std 0.1"
)
MODE = "--latent-mode embedding --group-column annotator --codebook-lr 0.3"
BATCHES = "--micro-batch-size 4 --global-batch-size 8 --device cpu"
RUN = f"{SHAPE} {MODE} {BATCHES} --train-iters 3 --lr 0.01 --no-tensorboard".split()


@pytest.fixture(scope="module")
def world(make_world):
    return make_world("--num-annotators", "4", "--num-pairs", "160", "--num-eval-pairs", "48")


@pytest.fixture(scope="module")
def config_file(world, tmp_path_factory):
    """Of a run that knows three of the four groups."""
    from megatron_lpc.train import train

    save = tmp_path_factory.mktemp("run")
    train(parse_args([*world, *RUN, "--known-groups", "ada", "ben", "cleo", "--save", str(save)]))
    return str(save / "config.yaml")


def test_a_run_learns_the_groups_of_its_data_and_keeps_their_names(world, tmp_path, evaluation):
    from megatron_lpc.train import train

    results = train(parse_args([*world, *RUN, "--save", str(tmp_path)]))
    assert set(results) == {f"{name}/{latent}" for name in ("agree", "disagree") for latent in ("prior", "group")}
    saved = parse_args(["--config", str(tmp_path / "config.yaml")])
    assert saved.latent.known_groups == ["ada", "ben", "cleo", "dan"]
    # Whoever evaluates with the options as the user gave them has the groups from the checkpoint.
    found = evaluation("--config", str(tmp_path / "config.yaml"), "--known-groups", "--support-pairs", "2")["data"]
    for name, report in found.items():
        assert report["metrics"]["group"] == pytest.approx(results[f"{name}/group"], abs=1e-9)
    with pytest.raises(ConversionError, match="latent_mode is embedding, whose head is not converted"):
        export_hf(tmp_path, tmp_path / "hf")


def test_report(config_file, evaluation):
    found = evaluation("--config", config_file, "--support-pairs", "2", "--support-steps", "5")
    assert found["support"]["steps"] == 5
    for report in found["data"].values():
        assert set(report["metrics"]) == {"prior", "group"}
        assert report["information"] is None
        assert report["verdict"] is None
        support = report["support"]
        assert set(support["accuracy"]) == {"prior", "group", "support"}
        assert set(support["groups"]) == {"ada", "ben", "cleo", "dan"}
        for group in support["groups"].values():
            assert (group["mixture"], group["posterior"], group["accuracy_exact"]) == (None, None, None)


def test_an_evaluation_without_groups_has_the_generic_vector_for_all(config_file, evaluation):
    found = evaluation("--config", config_file, "--group-column", "none")["data"]
    for report in found.values():
        assert report["support"] is None
        assert report["metrics"]["group"] == report["metrics"]["prior"]


@pytest.fixture(scope="module")
def scorer(config_file):
    """And its data, which have a group that the run did not know."""
    config = parse_command(["--config", config_file]).config
    source = config.data.valid_data["disagree"]
    scorer = CheckpointScorer(start_distributed(with_options(config, train_data=[source])))
    yield scorer, scorer.open("disagree", source)
    stop_distributed()


def test_each_pair_is_scored_under_the_vector_of_its_group(scorer):
    scorer, data = scorer
    (chunk,) = scorer._policy
    generic, *offsets = chunk.latent_head.vectors
    assert len(offsets) == 3
    numbers = {name: generic + offset for name, offset in zip(("ada", "ben", "cleo"), offsets, strict=True)}
    vectors = torch.stack([numbers.get(group, generic) for group in data.groups]).detach()
    table = scorer.score("disagree", data, ("group", "mixture", "prior"), vectors)
    torch.testing.assert_close(table.logps[:, 0], table.logps[:, 1])
    is_unknown = torch.tensor([group == "dan" for group in data.groups])
    assert torch.equal(table.logps[is_unknown, 0], table.logps[is_unknown, 2])
    assert (table.logps[~is_unknown, 0] - table.logps[~is_unknown, 2]).abs().min() > 1e-3


def test_latents_that_all_pairs_share_are_scored_in_one_pass(scorer):
    scorer, data = scorer
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    examples = [1, 4, 5, 20]
    together = scorer.score("disagree", data, ("mixture", "prior"), vectors[:, None], examples)
    assert together.example_index.tolist() == examples
    for place, vector in enumerate(vectors):
        alone = scorer.score("disagree", data, ("mixture", "prior"), vector.expand(len(data), -1))
        torch.testing.assert_close(together.logps[:, place], alone.logps[examples, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.logps[:, 3], alone.logps[examples, 1], rtol=0, atol=1e-4)
    assert (together.logps[:, 0] - together.logps[:, 1]).abs().min() > 1e-2


def test_the_fit_follows_the_gradient_of_the_support_set_alone(scorer):
    """The first step of Adam is the sign of the gradient, which differences of losses tell too.

    At hidden size 16 it is of four times the learning rate.
    """
    scorer, data = scorer
    groups = [str(group) for group in data.groups]
    support_sets = draw_support(groups, 3, seed=0)
    one_step = scorer.fit_group_vectors(data, support_sets, SupportOptions(steps=1, lr=0.025))
    (chunk,) = scorer._policy
    generic = chunk.latent_head.vectors[0].detach().double()

    def losses(offset):
        """[P] under the generic vector and an offset."""
        table = scorer.score("disagree", data, ("mixture",), (generic + offset).expand(len(data), -1))
        of = Responses.under_latent(table, 0)
        return preference_loss(scorer.config.loss, of.logps, of.reference_logps, of.response_length)

    moved = {group: vector - generic for group, vector in one_step.items()}
    assert moved.keys() == {"ada", "ben", "cleo", "dan"}
    for place in (0, 7):
        step = torch.zeros_like(generic)
        step[place] = 0.02
        slope = losses(step) - losses(-step)
        for group, indices in support_sets.items():
            assert moved[group][place] == pytest.approx(-0.1 * float(slope[indices].sum().sign()), rel=1e-3)

    fitted = scorer.fit_group_vectors(data, support_sets, SupportOptions(steps=30, lr=0.025))
    before = losses(torch.zeros_like(generic))
    for group, indices in support_sets.items():
        assert losses(fitted[group] - generic)[indices].mean() < before[indices].mean() - 0.1
    alone = scorer.fit_group_vectors(data, {"dan": support_sets["dan"]}, SupportOptions(steps=30, lr=0.025))
    torch.testing.assert_close(alone["dan"], fitted["dan"], rtol=0, atol=1e-4)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        "",
        "--pack-to 256 --share-prompt",
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--pipeline-model-parallel-size 2",
        "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
    ],
)
def test_every_layout_fits_the_same(config_file, scorer, layout, tmp_path):
    scorer, data = scorer
    support_sets = draw_support([str(group) for group in data.groups], 3, seed=0)
    expected = scorer.fit_group_vectors(data, support_sets, SupportOptions(pairs=3, steps=4, lr=0.025))
    source = scorer.config.data.valid_data["disagree"]
    worker = Path(__file__).parent / "fit_worker.py"
    torchrun(2, str(worker), config_file, source, str(tmp_path / "fit"), *layout.split())
    for rank in range(2):
        found = torch.load(tmp_path / f"fit-{rank}.pt")
        assert found.keys() == expected.keys()
        for group, vector in expected.items():
            torch.testing.assert_close(found[group], vector, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--support-steps 0", "--support-steps 0: must be at least 1"), ("--support-lr 0", "--support-lr 0: must be")],
)
def test_refused(config_file, flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_command(["--config", config_file, *flags.split()])
