"""The codes find two annotators who disagree, under the settings of examples/recovery; plain DPO cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lpc.config import parse_args

SETTINGS = Path(__file__).parents[2] / "examples" / "recovery"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_codes_find_the_annotators(make_world, evaluation, tmp_path):
    from megatron_lpc.train import train

    world = make_world()
    reports = {}
    for name in ("plain", "lpc"):
        save = str(tmp_path / name)
        settings = ["--config", str(SETTINGS / f"{name}.yaml"), "--seed", "1"]
        train(parse_args([*settings, *world, "--no-tensorboard", "--save", save]))
        # Pairs of the training prompts, which no test prompt is among.
        support = ["--support-data", world[1]] if name == "lpc" else []
        reports[name] = evaluation("--config", f"{save}/config.yaml", *support)["data"]

    codes = reports["lpc"]["disagree"]
    plain = reports["plain"]["disagree"]["metrics"]["none"]
    assert codes["information"]["bits"] >= 0.8
    assert codes["information"]["maximum"] == pytest.approx(1.0)
    assert codes["support"]["query_pairs"] == codes["pairs"] == 300
    assert codes["support"]["accuracy"]["support"] >= plain["rewards/accuracies"] + 0.3
    for report in reports.values():  # What all annotators agree on is learnt either way.
        accuracies = [metrics["rewards/accuracies"] for metrics in report["agree"]["metrics"].values()]
        assert min(accuracies) > 0.9, json.dumps(report)
