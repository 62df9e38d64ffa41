"""A tokenizer as published models have one: byte-level BPE of `tokenizers`, trained on the benchmark's rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def train_bpe(data: Path, vocab_size: int, folder: Path) -> None:
    """Train on the chosen texts of a JSONL file and save as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    lines = gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((json.loads(line)["chosen"] for line in lines.splitlines()), trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
