"""Reference log-probs: our program and TRL's DPOTrainer, on the same rows with the same model and tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import torchrun
from published import FAMILIES, write_tokenizer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_lpc.convert.import_hf import import_hf

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.distributed

CHATS = [
    {
        "prompt": [{"role": "system", "content": "You answer as a pirate."}, {"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Ahoy."}],
        "rejected": [{"role": "assistant", "content": "Hello there."}],
    },
    {
        "prompt": [{"role": "user", "content": "Name a bird."}],
        "chosen": [{"role": "assistant", "content": "A wren."}],
        "rejected": [{"role": "assistant", "content": "A cat."}],
    },
]
TEXTS = [
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
    {"prompt": "Q: Hi\nA:", "chosen": " Hello.", "rejected": " Go."},
    {"prompt": "Answer: ", "chosen": "Go.", "rejected": " no"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with Llama 2's tokenizer, and the rows."""
    folder = tmp_path_factory.mktemp("llama2")
    write_tokenizer(FAMILIES["llama-2"], folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def test_logps_are_those_of_trl(folder: Path, tmp_path: Path, write_jsonl: Callable[[Path, list], str]) -> None:
    ours = _ours(folder, tmp_path, write_jsonl)
    theirs = _trl(folder, tmp_path)
    for name in ("train", "texts"):
        assert ours[name].std() > 1, "the numbers differ from one another"
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-4)


def _ours(folder: Path, tmp_path: Path, write_jsonl: Callable[[Path, list], str]) -> dict[str, Tensor]:
    """[P, 2] per data set, with the sentencepiece file."""
    import_hf(folder, tmp_path / "imported")
    flags = {
        "--config": str(tmp_path / "imported" / "model.yaml"),
        "--pretrained-checkpoint": str(tmp_path / "imported"),
        "--tokenizer-model": str(folder / "tokenizer.model"),
        "--chat-template": str(folder / "template.jinja"),
        "--train-data": write_jsonl(tmp_path / "chats.jsonl", CHATS),
        "--valid-data": "texts=" + write_jsonl(tmp_path / "texts.jsonl", TEXTS),
        "--data-cache-path": str(tmp_path / "cache"),
        "--reference": "precomputed",
        "--reference-cache": str(tmp_path / "reference"),
        "--train-iters": "1",
        "--micro-batch-size": "1",
        "--global-batch-size": "1",
    }
    done = torchrun(1, "-m", "megatron_lpc.precompute_reference", *(word for flag in flags.items() for word in flag))
    files = re.findall(r"(\w+): \d+ pairs in (.+\.safetensors)", done.stderr)
    return {name: load_file(file)["reference_logps"] for name, file in files}


def _trl(folder: Path, tmp_path: Path) -> dict[str, Tensor]:
    """[P, 2] per data set, with transformers' tokenizer."""
    from datasets import Dataset

    options = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"),
        precompute_ref_log_probs=True,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )

    def logps(rows: list[dict[str, Any]]) -> Tensor:
        trainer = trl.DPOTrainer(
            model=LlamaForCausalLM.from_pretrained(folder),
            args=options,
            train_dataset=Dataset.from_list(json.loads(json.dumps(rows))),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        data = trainer.train_dataset
        return torch.tensor([data["ref_chosen_logps"], data["ref_rejected_logps"]]).T

    return {"train": logps(CHATS), "texts": logps(TEXTS)}
