"""A run so small that its steps take milliseconds.

Its preferences are generated, its tokenizer is trained on them, its model has two layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import settings
from program import load_program

ROOT = Path(__file__).parents[1]

# No test is timed: a busy machine is slow.
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def not_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in this process leaves torchrun's variables, by which other libraries would join processes of their own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@dataclass(frozen=True)
class TinyRun:
    """Files of the run; validation sets are `agree` and `disagree`."""

    folder: Path

    @property
    def config(self) -> str:
        return str(self.folder / "tiny.yaml")

    @property
    def train_data(self) -> str:
        return str(self.folder / "train.jsonl")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("tiny")
    preferences = load_program("tools/make_preferences.py")
    preferences.write_preferences(preferences.Recipe(num_pairs=48, num_eval_pairs=24), folder)
    train = str(folder / "train.jsonl")
    for name, size in (("words", 320), ("other_words", 340)):
        load_program("tools/train_tokenizer.py").train_tokenizer([train], str(folder / name), vocab_size=size)
    options = {
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "max_position_embeddings": 64,
            "make_vocab_size_divisible_by": 8,
            "init_method_std": 0.1,
        },
        "latent": {"codebook_size": 6},
        "data": {
            "train_data": [train],
            "valid_data": {"agree": str(folder / "test_agree.jsonl"), "disagree": str(folder / "test_disagree.jsonl")},
            "tokenizer_model": str(folder / "words.model"),
            "max_length": 64,
            "data_cache_path": str(folder / "cache"),
        },
        "parallel": {"device": "cpu"},
        "training": {"micro_batch_size": 2, "global_batch_size": 8, "lr": 1e-3, "seed": 5},
        "logging": {"tensorboard": False, "peak_tflops": 0.1},
    }
    run = TinyRun(folder)
    Path(run.config).write_text(yaml.safe_dump(options), encoding="utf-8")
    return run
