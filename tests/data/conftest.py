"""Tiny tokenizers and files; nothing here needs the network."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from program import load_program

from megatron_lpc.config.schema import DataConfig

os.environ["HF_HUB_OFFLINE"] = "1"
# `published` lies beside the tests.
sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]
TEXTS = [
    "the cat sat on the mat",
    "a dog ran to the red house",
    "Human: who are you?",
    "Assistant: I am a small model.",
    "yes",
    "no",
] * 5
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def _write_jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, list], str]:
    """Writes a JSON line per row and returns the path as text."""
    return _write_jsonl


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    """Ten good rows with a group."""
    return [
        {"prompt": f"the cat {i}", "chosen": f"sat on the mat {i}", "rejected": "ran", "annotator": i % 2}
        for i in range(10)
    ]


@pytest.fixture(scope="session")
def text_rows() -> list[dict]:
    """Rows with enough text for a vocabulary of 290."""
    return [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in TEXTS]


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE tokenizer that puts <s> before a text, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("hf")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def train_tokenizer():
    """The module tools/train_tokenizer.py."""
    return load_program("tools/train_tokenizer.py")


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory, train_tokenizer, text_rows: list[dict]) -> str:
    folder = tmp_path_factory.mktemp("sp")
    data = _write_jsonl(folder / "texts.jsonl", text_rows)
    return str(train_tokenizer.train_tokenizer([data], str(folder / "tiny"), vocab_size=290))


@pytest.fixture
def template_file(tmp_path: Path) -> str:
    path = tmp_path / "chat.jinja"
    path.write_text(CHAT_TEMPLATE, encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path: Path, sentencepiece_file: str) -> Callable[..., DataConfig]:
    """Makes a DataConfig with the sentencepiece tokenizer and a cache of its own."""
    defaults = {"tokenizer_model": sentencepiece_file, "data_cache_path": str(tmp_path / "cache")}
    return lambda **options: DataConfig(**(defaults | options))
