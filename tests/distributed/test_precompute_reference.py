"""Reference log-probs written once, in one layout, and read by training in another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import run, torchrun

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `reference_worker` found with a cache that two tensor parallel ranks wrote."""
    folder = tmp_path_factory.mktemp("reference")
    cache = folder / "cache"
    flags = ["--reference", "precomputed", "--reference-cache", str(cache), "--tensor-model-parallel-size", "2"]
    done = torchrun(2, "-m", "megatron_lpc.precompute_reference", "--config", tiny_run.config, *flags)
    assert len(list(cache.iterdir())) == 3, "training data and two validation sets"
    for name, pairs in (("train", 48), ("agree", 6), ("disagree", 18)):
        assert f"{name}: {pairs} pairs in {cache}" in done.stderr
    run([sys.executable, str(Path(__file__).parent / "reference_worker.py"), tiny_run.config, str(cache), str(folder)])
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_precomputed_equals_online(found: dict[str, Any]) -> None:
    online, precomputed = found["online"], found["precomputed"]
    assert [(line["iteration"], line.get("evaluation")) for line in precomputed] == [
        (line["iteration"], line.get("evaluation")) for line in online
    ]
    assert sum("evaluation" in line for line in online) == 2 * 2 * 2, "twice, two sets, two latents"
    for one, other in zip(online, precomputed, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["rewards/margins"] == pytest.approx(one["rewards/margins"], abs=1e-5)
    assert max(line["rewards/margins"] for line in online) > 1e-2, "the policy has left its reference"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("data", "has no log-probs of data set `train`"),
        ("validation", "has no log-probs of data set `held_out`"),
        ("tokenizer", "has no log-probs of data set `train`"),
        ("length", "(--chat-template-date); files of other data: 3; write it again with"),
        ("weights", "are of another reference"),
        ("damaged", "cannot be read"),
        ("no folder", "files of other data: 0"),
        ("simpo", "--loss-type simpo: has no reference, so there is nothing to precompute"),
        ("online", "nothing to precompute: set --reference precomputed and --reference-cache FOLDER"),
    ],
)
def test_refused(found: dict[str, Any], changed: str, message: str) -> None:
    assert message in found["refused"][changed]


def test_only_objectives_with_a_reference_build_one(found: dict[str, Any]) -> None:
    assert found["built"] == {"dpo": 1, "precomputed": 3, "simpo": 0, "sft": 0}
