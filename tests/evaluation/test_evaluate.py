"""The evaluation program on a tiny checkpoint: what it reports, in every layout, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import torchrun

from megatron_lpc.config import ConfigError, parse_args
from megatron_lpc.evaluate import evaluate
from megatron_lpc.evaluation.options import SupportOptions, parse_command
from megatron_lpc.training.setup import stop_distributed

SHAPE = "--num-layers 2 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 --max-position-embeddings 128 --max-length 128"
HEAD = "--codebook-size 4 --codebook-init-std 1 --init-method-std 0.1"
BATCHES = "--micro-batch-size 4 --global-batch-size 8 --device cpu"
RUN = f"{SHAPE} {BATCHES} --train-iters 2 --lr 0.01 --no-tensorboard".split()


@pytest.fixture(scope="module")
def run(make_world, tmp_path_factory):
    """Flags of an evaluation of an LPC run: its configuration, which names its checkpoint and its data."""
    from megatron_lpc.train import train

    save = tmp_path_factory.mktemp("run")
    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    train(parse_args([*world, *RUN, *HEAD.split(), "--group-column", "annotator", "--save", str(save)]))
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
        assert set(found["metrics"]) == {"prior", "posterior"}
        assert found["information"]["maximum"] == pytest.approx(1.0)
        support = found["support"]
        assert support["held_out"] == pairs - 4  # Each annotator sees a prompt once.
        assert set(support["accuracy"]) == {"prior", "posterior", "support"}
        assert support["left_out"] == []
        assert set(support["people"]) == {"ada", "ben"}
        right = sum(person["accuracy"] * person["held_out"] for person in support["people"].values())
        assert right / support["held_out"] == pytest.approx(support["accuracy"]["support"])
        for person in support["people"].values():
            assert sum(person["mixture"]) == pytest.approx(1.0)
            assert len(person["mixture"]) == 4


def test_evaluation_is_that_of_training(run, report):
    lines = [json.loads(line) for line in (Path(run[1]).parent / "metrics.jsonl").read_text().splitlines()]
    trained = {line["evaluation"]: line for line in lines if "evaluation" in line}
    for name in ("agree", "disagree"):
        for latent in ("prior", "posterior"):
            assert report["data"][name]["metrics"][latent]["loss"] == pytest.approx(
                trained[f"{name}/{latent}"]["loss"], abs=1e-9
            )


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout", ["", "--tensor-model-parallel-size 2 --sequence-parallel", "--pipeline-model-parallel-size 2"]
)
def test_every_layout_reports_the_same(run, report, layout, tmp_path):
    output = tmp_path / "report.json"
    torchrun(2, "-m", "megatron_lpc.evaluate", *run, "--support-pairs", "2", "--output", str(output), *layout.split())
    other = json.loads(output.read_text())
    for name, found in report["data"].items():
        assert other["data"][name]["support"]["held_out"] == found["support"]["held_out"]
        for latent, metrics in found["metrics"].items():
            assert other["data"][name]["metrics"][latent] == pytest.approx(metrics, abs=1e-5)
        for group, person in found["support"]["people"].items():
            assert other["data"][name]["support"]["people"][group]["mixture"] == pytest.approx(
                person["mixture"], abs=1e-6
            )


def test_support_from_other_data_leaves_all_pairs_to_judge(run, evaluation):
    train_data = parse_args(run).data.train_data[0]
    found = evaluation(*run, "--support-data", train_data, "--support-pairs", "5")
    assert {name: one["support"]["held_out"] for name, one in found["data"].items()} == {"agree": 12, "disagree": 36}
    # One latent per person, whatever is judged.
    assert (
        found["data"]["agree"]["support"]["people"]["ada"]["mixture"]
        == found["data"]["disagree"]["support"]["people"]["ada"]["mixture"]
    )


def test_the_latent_of_the_support_is_what_judges(run):
    """Support that is one pair gives that pair's own posterior, so the two latents judge this pair alike."""
    config, _, _ = parse_command(run)
    tables = []

    def spy(config, table, names, groups, kept, latents):
        tables.append((table, groups, latents))
        from megatron_lpc.evaluation.support_report import judge

        return judge(config, table, names, groups, kept, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_lpc.evaluate.judge", spy)
        evaluate(config, SupportOptions(pairs=1))
    for table, groups, latents in tables:
        for group, latent in latents.items():
            distance = (table.posterior_logits.softmax(-1) - latent).abs().sum(1)
            row = min((row for row, other in enumerate(groups) if other == group), key=lambda row: float(distance[row]))
            assert distance[row] < 1e-12
            assert table.logps[2, row].tolist() == pytest.approx(table.logps[1, row].tolist(), abs=1e-4)
            assert abs(table.logps[2, :, 0] - table.logps[0, :, 0]).max() > 1e-4, "support and prior differ"


def test_without_groups_there_is_no_support(run, evaluation):
    found = evaluation(*run, "--group-column", "none")
    assert found["support"] is None
    assert all(one["support"] is None and one["information"] is None for one in found["data"].values())


def test_no_pair_left(run):
    config, support, _ = parse_command([*run, "--support-pairs", "6"])
    with pytest.raises(ConfigError, match=r"--valid-data agree: no pair is left to judge by 6 support pairs a group"):
        evaluate(config, support)
    stop_distributed()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "1"], "--lr: has no effect on an evaluation"),
        (["--no-reference-offload", "--reference", "online"], "--reference: has no effect"),
        (["--kl-weight=0"], "--kl-weight: has no effect"),
        (["--no-bf16", "--no-tensorboard"], "--no-tensorboard: has no effect"),
        (["--suport-pairs", "1"], "unknown flag"),
        (["--support-pairs", "x"], "invalid int value"),
        (["--support-pairs", "0"], "--support-pairs 0: must be at least 1"),
        (["--group-column", "none", "--support-seed", "0"], "--support-seed: support needs codes and groups"),
        (["--valid-data"], "--valid-data: is empty"),
    ],
)
def test_refused(run, flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_command([*run, *flags])


def test_a_checkpoint_must_be_named():
    with pytest.raises(ConfigError, match="--load: is unset"):
        parse_command(["--valid-data", "a=b.jsonl"])


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(run, tmp_path, make_world, capsys):
    from megatron_lpc.evaluate import main
    from megatron_lpc.train import train

    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    train(parse_args([*world, *RUN, "--latent-mode", "none", "--save", str(tmp_path)]))
    (tmp_path / "iter_0000002" / "description.json").unlink()
    with pytest.raises(SystemExit) as ended:
        main([*run, "--load", str(tmp_path)])
    stop_distributed()
    assert ended.value.code == 2
    assert "lacks latent_head." in capsys.readouterr().err
