"""Real, short runs of examples/recovery: the guard speaks where codes are forced to collapse, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lpc.config import parse_args

SETTINGS = str(Path(__file__).parents[2] / "examples" / "recovery" / "lpc.yaml")
SHORT = [
    "--seed",
    "1",
    "--train-iters",
    "45",
    "--micro-batch-size",
    "16",
    "--global-batch-size",
    "16",
    "--posterior-context",
    "0",
]


def test_guard_and_verdict_of_real_runs(make_world, evaluation, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from megatron_lpc.train import train

    world = make_world("--num-pairs", "720", "--num-eval-pairs", "80")
    states, printed = {}, {}
    for name, flags in (("healthy", []), ("collapsed", ["--kl-weight", "100"])):
        save = str(tmp_path / name)
        train(parse_args(["--config", SETTINGS, *SHORT, *flags, *world, "--no-tensorboard", "--save", save]))
        printed[name] = capsys.readouterr().out
        (line,) = [line for line in printed[name].splitlines() if line.startswith("codes on disagree at step 45: ")]
        states[name] = line.removeprefix("codes on disagree at step 45: ").split(" (KL ")[0]
    assert states == {"healthy": "active", "collapsed": "collapsed"}
    assert "warning: " not in printed["healthy"]
    assert printed["collapsed"].count("warning: the codes have collapsed; try --kl-weight below 100 (") == 1

    support = ["--support-data", world[1].replace("train", "valid")]
    report = evaluation("--config", f"{tmp_path}/healthy/config.yaml", *support)["data"]["disagree"]
    assert report["verdict"]["state"] == "active"
    why, accuracy = report["verdict"]["why"], report["support"]["accuracy"]
    line = f"codes on disagree: active ({why}); support {accuracy['support']:.1%}, prior {accuracy['prior']:.1%}"
    assert line in capsys.readouterr().out.splitlines()


def test_default_options_find_the_annotators(make_world, evaluation, tmp_path: Path) -> None:
    """The quick form of test_recovery."""
    from megatron_lpc.train import train

    world = make_world("--num-eval-pairs", "80")
    short = ["--config", SETTINGS, "--seed", "1", "--train-iters", "75"]
    train(parse_args([*short, *world, "--no-tensorboard", "--save", str(tmp_path)]))
    report = evaluation("--config", f"{tmp_path}/config.yaml", "--support-data", world[1])["data"]
    assert report["disagree"]["support"]["accuracy"]["prior"] == pytest.approx(0.5, abs=0.05)
    assert report["disagree"]["support"]["accuracy"]["support"] >= 0.9
    assert report["agree"]["support"]["accuracy"]["support"] >= 0.9
