"""The program, and small models on disk that the tests convert or damage."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import load_program

# `models` and `logits_worker` lie beside the tests.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def convert_hf() -> Callable[..., int]:
    """The program, in this process: arguments -> exit code."""
    module = load_program("tools/convert_hf.py")

    def run(*arguments: object) -> int:
        try:
            module.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model in shards, with a tokenizer."""
    from models import make_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = make_model(tmp_path_factory.mktemp("llama") / "hf", "llama3", max_shard_size="20KB")
    tokens = ["<pad>", "<s>", "</s>", *(chr(code) for code in range(33, 127))]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of `llama`, to be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "hf"))


@pytest.fixture(scope="session")
def imported(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint made from `llama`."""
    from megatron_lpc.convert.import_hf import import_hf

    folder = tmp_path_factory.mktemp("imported") / "megatron"
    import_hf(llama, folder)
    return folder


@pytest.fixture
def checkpoint(imported: Path, tmp_path: Path) -> Path:
    """A copy of `imported`, to be damaged."""
    return Path(shutil.copytree(imported, tmp_path / "megatron"))


@pytest.fixture(scope="session")
def for_servers(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, its exports `hf` (with the head) and `served` (for servers), and saved latents in the latter."""
    from serving_export import export_for_servers

    folder = tmp_path_factory.mktemp("serving")
    export_for_servers(tiny_run.config, folder)
    return folder
