"""The files that belong to a model beside its weights: config.json, generation settings and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lpc.config import DataConfig
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint

_MAX_RUNS_BACK = 100
HF_FILES = "hf"
"""Folder within an imported checkpoint that keeps the companions of the original."""

_PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
)
DOWNLOADED = (
    "config.json",
    "adapter_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    *_PATTERNS,
)
"""Files of a model on the Hub that a conversion reads; none of the same weights in another format."""


def companion_files(folder: Path) -> list[Path]:
    """Files in a Hugging Face folder that belong to the model, without weights and config.json."""
    return sorted({path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()})


def find_hf_files(checkpoint: Path) -> Path | None:
    """The folder with the original's files, where there is one.

    It lies in this checkpoint, or in the one that its run started from, however many runs back.
    """
    seen: set[Path] = set()
    while len(seen) < _MAX_RUNS_BACK and (folder := resolve_checkpoint(checkpoint)) not in seen:
        if (folder / HF_FILES / "config.json").is_file():
            return folder / HF_FILES
        seen.add(folder)
        start = _saved_options(folder).get("checkpoint", {}).get("pretrained_checkpoint")
        if start is None or not Path(start).is_dir():
            return None
        checkpoint = Path(start)
    return None


def files_to_export(checkpoint: Path, hf_config: Path | None) -> list[Path]:
    """Tokenizer and generation settings of the original, or else the tokenizer that the run was trained with.

    Args:
        checkpoint: folder of one checkpoint.
        hf_config: folder of the original, where the user named one.
    """
    origin = hf_config or find_hf_files(checkpoint)
    if origin is not None and origin.is_dir():
        return companion_files(origin)
    trained_with = _tokenizer_of_run(checkpoint)
    if trained_with is None:
        return []
    if trained_with.is_dir():
        return companion_files(trained_with)
    return [trained_with]


def find_tokenizer(checkpoint: Path, hf_config: Path | None) -> Path | None:
    """Folder or file of the tokenizer of a checkpoint, where there is one."""
    for folder in (hf_config, find_hf_files(checkpoint)):
        if folder is not None and has_tokenizer(folder):
            return folder
    return _tokenizer_of_run(checkpoint)


def has_tokenizer(folder: Path) -> bool:
    """Whether a Hugging Face folder holds a tokenizer."""
    return any(folder.glob("tokenizer*"))


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a folder, or that of a sentencepiece file; code that it comes with is not run.

    Raises:
        ConversionError: it cannot be loaded.
    """
    try:
        return load_tokenizer(DataConfig(tokenizer_model=str(path)))
    except (ValueError, OSError) as error:
        raise ConversionError(error) from error


def special_tokens(tokenizer_model: str | None) -> dict[str, int | None]:
    """Settings of config.json that begin, end and pad a text, from the tokenizer of a run.

    Without a tokenizer they are None: a family would otherwise give the token ids of its first model.
    """
    if not tokenizer_model or not Path(tokenizer_model).exists():
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    tokenizer = open_tokenizer(Path(tokenizer_model))
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def _tokenizer_of_run(checkpoint: Path) -> Path | None:
    """What `--tokenizer-model` was, if it still exists; None for a name on the Hub."""
    trained_with = _saved_options(checkpoint).get("data", {}).get("tokenizer_model")
    return Path(trained_with) if trained_with and Path(trained_with).exists() else None


def _saved_options(checkpoint: Path) -> dict[str, Any]:
    return read_description(checkpoint).get("options", {})
