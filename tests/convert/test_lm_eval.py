"""EleutherAI's lm-evaluation-harness, as its users run it, on a trained model without its head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.logits import megatron_logits
from megatron_lpc.convert.open_model import open_model
from megatron_lpc.train import main as train

QUESTIONS = [
    {"question": "1 + 1 =", "choices": ["2", "3", "11"], "answer": 0},
    {"question": "the sky is", "choices": ["green", "blue"], "answer": 1},
    {"question": "a b c", "choices": ["d", "z", "x y"], "answer": 0},
]


@pytest.fixture(scope="module")
def trained(tiny_run, imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    options = yaml.safe_load(Path(tiny_run.config).read_text())
    ours = yaml.safe_load((imported / "model.yaml").read_text())
    options["data"] |= ours.pop("data") | {"max_length": 64, "data_cache_path": str(folder / "cache")}
    (folder / "run.yaml").write_text(yaml.safe_dump(options | ours))
    flags = ["--pretrained-checkpoint", str(imported), "--train-iters", "2", "--save", str(folder / "run")]
    train(["--config", str(folder / "run.yaml"), *flags])
    return folder / "run"


def test_backbone_in_the_harness(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the extra `test` installs it")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        # Set by the training above; the harness would take them for torchrun's.
        monkeypatch.delenv(name, raising=False)
    hf = tmp_path / "hf"
    export_hf(trained, hf, form="backbone")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(yaml.safe_dump(task))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={hf},dtype=float32",
        tasks=["tiny"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(results["samples"]["tiny"], key=lambda sample: sample["doc_id"])
    scores = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    wanted = [[_log_prob(trained, hf, doc["question"], f" {choice}") for choice in doc["choices"]] for doc in QUESTIONS]
    for found, own in zip(scores, wanted, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(own), rtol=0, atol=1e-4)
    right = sum(own.index(max(own)) == doc["answer"] for own, doc in zip(wanted, QUESTIONS, strict=True))
    assert results["results"]["tiny"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def _log_prob(checkpoint: Path, hf: Path, context: str, continuation: str) -> float:
    """Log-prob of the continuation by megatron-core."""
    tokenizer = AutoTokenizer.from_pretrained(hf)
    start = len(tokenizer(context)["input_ids"])
    whole = tokenizer(context + continuation)["input_ids"]
    opened = open_model(checkpoint)
    (logits,) = megatron_logits(checkpoint, opened.described.model, [torch.tensor([whole])])
    logps = logits[0].log_softmax(-1)
    return float(sum(logps[position - 1, whole[position]] for position in range(start, len(whole))))


def test_plain_transformers_load_it(trained: Path, tmp_path: Path) -> None:
    export_hf(trained, tmp_path / "hf", form="backbone")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(model).__name__ == "LlamaForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.generate(**tokenizer("a b", return_tensors="pt"), max_new_tokens=2).shape[1] > 2
