"""The codes find two annotators who disagree, under the default options; plain DPO cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lpc.config import parse_args

SETTINGS = Path(__file__).parents[2] / "examples" / "recovery"


def check_personal_latents(folder, world, evaluation, groups):
    """`personalize` with 8 pairs of an annotator gives the accuracy of support, on their other pairs of new prompts."""
    from megatron_lpc.personalize import main as personalize

    for annotator, of_group in groups.items():
        files = {}
        for name, source, count in (("pairs", world[1], 8), ("own", world[-1].partition("=")[2], None)):
            rows = [line for line in Path(source).read_text(encoding="utf-8").splitlines() if annotator in line]
            files[name] = folder / f"{annotator}-{name}.jsonl"
            files[name].write_text("\n".join(rows[:count]) + "\n", encoding="utf-8")
        saved = folder / f"{annotator}.safetensors"
        personalize(["--load", str(folder / "lpc"), "--pairs", str(files["pairs"]), "--output", str(saved)])
        flags = ["--config", str(folder / "lpc" / "config.yaml"), "--group-column", "none", "--latent", str(saved)]
        metrics = evaluation(*flags, "--valid-data", f"own={files['own']}")["data"]["own"]["metrics"]
        for name, wanted in (("", of_group["accuracy"]), (", exact", of_group["accuracy_exact"])):
            assert metrics[annotator + name]["rewards/accuracies"] >= wanted - 0.03, (annotator, name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_codes_find_the_annotators(make_world, evaluation, tmp_path, seed):
    from megatron_lpc.train import train

    world = make_world()
    reports = {}
    for name in ("plain", "lpc"):
        save = str(tmp_path / name)
        settings = ["--config", str(SETTINGS / f"{name}.yaml"), "--seed", str(seed)]
        train(parse_args([*settings, *world, "--no-tensorboard", "--save", save]))
        # Pairs of the training prompts, which no test prompt is among.
        support = ["--support-data", world[1]] if name == "lpc" else []
        reports[name] = evaluation("--config", f"{save}/config.yaml", *support)["data"]

    check_personal_latents(tmp_path, world, evaluation, reports["lpc"]["disagree"]["support"]["groups"])
    codes = reports["lpc"]["disagree"]
    plain = reports["plain"]["disagree"]["metrics"]["none"]
    assert codes["information"]["bits"] >= 0.9
    assert codes["information"]["maximum"] == pytest.approx(1.0)
    assert codes["support"]["query_pairs"] == codes["pairs"] == 300
    assert codes["support"]["accuracy"]["support"] >= plain["rewards/accuracies"] + 0.45
    for report in reports.values():  # What all annotators agree on is learnt either way.
        accuracies = [metrics["rewards/accuracies"] for metrics in report["agree"]["metrics"].values()]
        assert min(accuracies) > 0.9, json.dumps(report)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flags", ["", "--latent-inference exact --exact-temperature 0.1"])
def test_codes_of_single_pairs_find_the_annotators(make_world, evaluation, tmp_path, flags):
    """With the posterior network, and by exact inference at a low temperature."""
    from megatron_lpc.train import train

    world = make_world()
    settings = ["--config", str(SETTINGS / "lpc.yaml"), "--seed", "1", "--posterior-context", "0", *flags.split()]
    train(parse_args([*settings, *world, "--no-tensorboard", "--save", str(tmp_path)]))
    report = evaluation("--config", str(tmp_path / "config.yaml"), "--support-data", world[1])["data"]["disagree"]
    assert report["information"]["bits"] >= 0.8
    assert report["support"]["accuracy"]["support_exact"] >= 0.9
    assert report["support"]["accuracy"]["marginal"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("annotators", "most_with_two_codes"), [(3, 0.857), (4, 0.78)])
def test_codes_tell_more_than_two_annotators_apart(
    make_world, evaluation, tmp_path, annotators, most_with_two_codes, seed
):
    from megatron_lpc.train import train

    world = make_world("--num-annotators", str(annotators), "--num-eval-pairs", "402" if annotators == 3 else "400")
    settings = ["--config", str(SETTINGS / "lpc.yaml"), "--seed", str(seed), "--num-train-epochs", "6"]
    train(parse_args([*settings, *world, "--no-tensorboard", "--save", str(tmp_path)]))
    data = evaluation("--config", str(tmp_path / "config.yaml"), "--support-data", world[1])["data"]
    assert data["disagree"]["support"]["accuracy"]["support_exact"] >= most_with_two_codes + 0.1
    assert data["agree"]["support"]["accuracy"]["support_exact"] >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("annotators", "learned"), [(2, 0.97), (4, 0.85)])
def test_vectors_of_annotators(make_world, evaluation, tmp_path, annotators, learned):
    """Of known ones, and of new ones by 8 labelled pairs; the generic vector is plain DPO's 50%."""
    from megatron_lpc.train import train

    world = make_world("--num-annotators", str(annotators))
    settings = ["--config", str(SETTINGS / "lpc.yaml"), "--seed", "1", "--latent-mode", "embedding"]
    train(parse_args([*settings, *world, "--no-tensorboard", "--save", str(tmp_path)]))
    report = evaluation("--config", str(tmp_path / "config.yaml"), "--support-data", world[1])["data"]["disagree"]
    accuracy = report["support"]["accuracy"]
    assert accuracy["prior"] == pytest.approx(0.5, abs=0.02)
    assert min(accuracy["group"], accuracy["support"]) >= learned


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gaussian_latents_find_the_annotators(make_world, evaluation, tmp_path):
    """From the 7 other pairs of an episode in training, and from 8 labelled pairs at evaluation."""
    from megatron_lpc.train import train

    world = make_world()
    mode = ["--latent-mode", "gaussian", "--num-train-epochs", "4"]
    settings = ["--config", str(SETTINGS / "lpc.yaml"), "--seed", "1", *mode]
    train(parse_args([*settings, *world, "--no-tensorboard", "--save", str(tmp_path)]))
    report = evaluation("--config", str(tmp_path / "config.yaml"), "--support-data", world[1])["data"]["disagree"]
    accuracy = report["support"]["accuracy"]
    assert accuracy["prior"] == pytest.approx(0.5, abs=0.05)
    assert accuracy["support"] >= 0.9
