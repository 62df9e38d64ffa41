"""The evaluation program on a tiny checkpoint: what it reports in every parallel layout, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from launch import torchrun

from megatron_lpc.config import ConfigError, parse_args
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.evaluate import evaluate
from megatron_lpc.evaluation.options import SupportOptions, parse_command
from megatron_lpc.evaluation.support import GroupLatents
from megatron_lpc.training.setup import stop_distributed

SHAPE = (
    "--num-layers 2 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 "
    "--max-position-embeddings 128 --max-length 128"
)
HEAD = "--codebook-size 4 --codebook-init-std 1 --init-method-std 0.1"
BATCHES = "--micro-batch-size 4 --global-batch-size 8 --device cpu"
RUN = f"{SHAPE} {BATCHES} --train-iters 2 --lr 0.01 --no-tensorboard".split()
SUPPORTED = ("support", "support_exact", "swapped")
SINGLE_PAIRS = ["--group-column", "annotator", "--posterior-context", "0"]


@pytest.fixture(scope="module")
def run(make_world, tmp_path_factory):
    """Flags of an evaluation of an LPC run: its configuration, which names its checkpoint and its data."""
    from megatron_lpc.train import train

    save = tmp_path_factory.mktemp("run")
    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    from megatron_lpc.model import initialize

    own = initialize._head_standard_deviation

    def never_zero(key, num_inputs, latent):
        """A head starts from equal probabilities, of which rounding would decide which comes first."""
        return own(key, num_inputs, latent) or 0.1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, "_head_standard_deviation", never_zero)
        train(parse_args([*world, *RUN, *HEAD.split(), *SINGLE_PAIRS, "--save", str(save)]))
    return ["--config", str(save / "config.yaml")]


@pytest.fixture(scope="module")
def report(run, evaluation):
    return evaluation(*run, "--support-pairs", "2")


def test_report_of_each_data_set(report):
    assert report["support"] == {"pairs": 2, "seed": 0, "data": None}
    assert list(report["data"]) == ["agree", "disagree"]
    for name, pairs in (("agree", 12), ("disagree", 36)):
        found = report["data"][name]
        assert found["pairs"] == pairs
        assert set(found["metrics"]) == {"prior", "posterior", "marginal"}
        assert found["information"]["maximum"] == pytest.approx(1.0)
        support = found["support"]
        assert support["query_pairs"] == pairs - 4  # Each annotator sees a prompt once.
        assert set(support["accuracy"]) == {"prior", "posterior", "marginal", *SUPPORTED}
        assert support["left_out"] == []
        groups = support["groups"]
        assert set(groups) == {"ada", "ben"}
        correct = sum(group["accuracy"] * group["query_pairs"] for group in groups.values())
        assert correct / support["query_pairs"] == pytest.approx(support["accuracy"]["support"])
        for group in groups.values():
            for weights in (group["mixture"], group["posterior"]):
                assert sum(weights) == pytest.approx(1.0)
                assert len(weights) == 4


def test_evaluation_is_that_of_training(run, report):
    lines = [json.loads(line) for line in (Path(run[1]).parent / "metrics.jsonl").read_text().splitlines()]
    trained = {line["evaluation"]: line for line in lines if "evaluation" in line}
    for name in ("agree", "disagree"):
        for latent in ("prior", "posterior"):
            loss = report["data"][name]["metrics"][latent]["loss"]
            assert loss == pytest.approx(trained[f"{name}/{latent}"]["loss"], abs=1e-9)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        "",
        "--pack-to 256 --share-prompt",  # Ranks score different numbers of pairs per step.
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--pipeline-model-parallel-size 2",
    ],
)
def test_every_layout_reports_the_same(run, report, layout, tmp_path):
    output = tmp_path / "report.json"
    torchrun(2, "-m", "megatron_lpc.evaluate", *run, "--support-pairs", "2", "--output", str(output), *layout.split())
    other = json.loads(output.read_text())["data"]
    for name, expected in report["data"].items():
        found = other[name]
        assert found["support"]["query_pairs"] == expected["support"]["query_pairs"]
        for latent, metrics in expected["metrics"].items():
            assert found["metrics"][latent] == pytest.approx(metrics, abs=1e-5)
        for group, of_group in expected["support"]["groups"].items():
            mixture = found["support"]["groups"][group]["mixture"]
            assert mixture == pytest.approx(of_group["mixture"], abs=1e-6)
            posterior = found["support"]["groups"][group]["posterior"]
            assert posterior == pytest.approx(of_group["posterior"], abs=1e-5)


def test_exact_inference_is_evaluated_without_a_posterior_network(make_world, evaluation, tmp_path):
    from megatron_lpc.train import train

    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    exact = [*HEAD.split(), *SINGLE_PAIRS, "--latent-inference", "exact"]
    trained = train(parse_args([*world, *RUN, *exact, "--save", str(tmp_path)]))
    assert set(trained) == {f"{name}/{latent}" for name in ("agree", "disagree") for latent in ("prior", "marginal")}
    found = evaluation("--config", str(tmp_path / "config.yaml"), "--support-pairs", "2")["data"]
    for name, one in found.items():
        assert set(one["metrics"]) == {"prior", "marginal"}
        assert one["metrics"]["marginal"] == pytest.approx(trained[f"{name}/marginal"], abs=1e-9)
        assert one["metrics"]["marginal"]["lpc/kl"] > 0
        assert set(one["support"]["accuracy"]) == {"prior", "marginal", *SUPPORTED}


def test_with_support_from_other_data_all_pairs_are_query_pairs(run, evaluation):
    train_data = parse_args(run).data.train_data[0]
    found = evaluation(*run, "--support-data", train_data, "--support-pairs", "5")["data"]
    assert {name: one["support"]["query_pairs"] for name, one in found.items()} == {"agree": 12, "disagree": 36}
    # One latent per group, whatever data set is evaluated.
    of_ada = [one["support"]["groups"]["ada"]["mixture"] for one in found.values()]
    assert of_ada[0] == of_ada[1]


def test_pairs_are_scored_under_the_latent_of_their_group(run):
    """A support set of one pair gives that pair's own posterior, so the pair has the same score under both latents."""
    config = parse_command(run).config
    scored = []

    def spy(self, name, data, sources, mixture=None):
        table = score(self, name, data, sources, mixture)
        scored.append((data, table, mixture))
        return table

    with pytest.MonkeyPatch.context() as patch:
        score = CheckpointScorer.score
        patch.setattr(CheckpointScorer, "score", spy)
        evaluate(config, SupportOptions(pairs=1))
    assert len(scored) == 4
    for (data, table, _), (_, under_mixture, mixture) in zip(scored[::2], scored[1::2], strict=True):
        prior, posterior = table.logps.unbind(dim=1)
        support = under_mixture.logps[:, 0]
        distance = (table.posterior_logits.softmax(-1) - mixture).abs().sum(1)
        for group in ("ada", "ben"):
            of_group = [pair for pair, other in enumerate(data.groups) if str(other) == group]
            pair = min(of_group, key=lambda pair: float(distance[pair]))
            assert distance[pair] < 1e-12
            assert support[pair].tolist() == pytest.approx(posterior[pair].tolist(), abs=1e-4)
            assert abs(support[of_group, 0] - prior[of_group, 0]).max() > 1e-4, "support and prior differ"


def test_swapped_latents_are_those_of_the_other_group(run):
    """With two groups, each pair is predicted by the codes' weights of the group that it is not of."""
    config = parse_command(run).config
    asked = []
    weights = GroupLatents.exact_log_weights

    def spy(self, groups, log_prior):
        found = weights(self, groups, log_prior)
        asked.append((list(groups), found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupLatents, "exact_log_weights", spy)
        reports = evaluate(config, SupportOptions(pairs=2))
    assert len(asked) == 4
    for (own, under_own), (other, under_other) in zip(asked[::2], asked[1::2], strict=True):
        assert [{"ada": "ben", "ben": "ada"}[group] for group in own] == other
        assert not under_own.equal(under_other)
    for report in reports.values():
        assert report.support is not None
        assert 0 <= report.support.accuracy["swapped"] <= 1


def test_options_of_training_in_the_file_change_nothing(run, evaluation, report, tmp_path):
    options = yaml.safe_load(Path(run[1]).read_text(encoding="utf-8"))
    options["data"] |= {"streaming": True, "shuffle_buffer_size": 5}
    options["loss"]["logps_algorithm"] = "recompute"
    file = tmp_path / "streamed.yaml"
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    assert evaluation("--config", str(file), "--support-pairs", "2")["data"] == report["data"]


def test_without_groups_there_is_no_support(run, evaluation):
    found = evaluation(*run, "--group-column", "none")
    assert found["support"] is None
    assert all(one["support"] is None and one["information"] is None for one in found["data"].values())


def test_no_pair_left(run):
    command = parse_command([*run, "--support-pairs", "6"])
    with pytest.raises(ConfigError, match=r"--valid-data agree: no pair is left to evaluate after 6 support pairs"):
        evaluate(command.config, command.support)
    stop_distributed()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "1"], "--lr: has no effect on an evaluation"),
        (["--no-reference-offload", "--reference", "online"], "--reference: has no effect"),
        (["--logps-algorithm", "recompute"], "--logps-algorithm: has no effect"),
        (["--no-streaming"], "--no-streaming: has no effect"),
        (["--shuffle-buffer-size", "5"], "--shuffle-buffer-size: has no effect"),
        (["--kl-weight=0"], "--kl-weight: has no effect"),
        (["--no-bf16", "--no-tensorboard"], "--no-tensorboard: has no effect"),
        (["--suport-pairs", "1"], "unknown flag"),
        (["--support-pairs", "x"], "invalid int value"),
        (["--support-pairs", "0"], "--support-pairs 0: must be at least 1"),
        (["--group-column", "none", "--support-seed", "0"], "--support-seed: support needs groups"),
        (["--support-steps", "3"], "--support-steps: is of the vectors that --latent-mode embedding fits"),
        (["--valid-data"], "--valid-data: is empty"),
    ],
)
def test_refused(run, flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_command([*run, *flags])


def test_a_checkpoint_must_be_named():
    with pytest.raises(ConfigError, match="--load: is unset"):
        parse_command(["--valid-data", "a=b.jsonl"])


def test_a_checkpoint_without_a_head_is_refused(run, tmp_path, make_world, capsys):
    from megatron_lpc.evaluate import main
    from megatron_lpc.train import train

    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    train(parse_args([*world, *RUN, "--latent-mode", "none", "--save", str(tmp_path)]))
    for name in ("description.json", "integrity.json"):  # As another program writes a checkpoint.
        (tmp_path / "iter_0000002" / name).unlink()
    with pytest.raises(SystemExit) as ended:
        main([*run, "--load", str(tmp_path)])
    stop_distributed()
    assert ended.value.code == 2
    assert "lacks latent_head." in capsys.readouterr().err
