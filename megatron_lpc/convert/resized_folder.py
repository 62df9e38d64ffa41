"""A Hugging Face model with room for the added tokens of its tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_lpc.convert.companions import has_tokenizer, open_tokenizer
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hf_folder import HFFolder

_ROWS_ARE_TOKENS = ("embed_tokens.weight", "lm_head.weight")
"""Name endings of the tensors with one row per token id."""


class ResizedHFFolder(HFFolder):
    """The same model with more token ids: every new row of the embedding and the LM head is the mean of the old ones.

    That is where the `resize_token_embeddings` of transformers puts them too, but for noise.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        """
        Args:
            vocab_size: number of token ids; at least that of the model.

        Raises:
            ConversionError: as `HFFolder`; or the model has more token ids already.
        """
        super().__init__(folder)
        settings = _settings_of_backbone(self.config)
        if type(settings.get("vocab_size")) is not int:
            raise ConversionError(f"{folder / 'config.json'}: vocab_size must be a whole number")
        if vocab_size < settings["vocab_size"]:
            raise ConversionError(
                f"--resize-token-embeddings {vocab_size}: {folder} has {settings['vocab_size']} token ids, "
                "and none is taken away"
            )
        settings["vocab_size"] = vocab_size
        for name, info in self.tensors.items():
            if name.endswith(_ROWS_ARE_TOKENS):
                self.tensors[name] = replace(info, shape=(vocab_size, *info.shape[1:]))

    def read(self, name: str) -> Tensor:
        """As `HFFolder.read`, with the new rows."""
        tensor = super().read(name)
        shape = self.tensors[name].shape
        if tuple(tensor.shape) == shape:
            return tensor
        mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(shape[0] - len(tensor), *shape[1:])])


def token_ids_beyond(source: HFFolder) -> int | None:
    """How many token ids the tokenizer in a folder has, where the embedding of its model has fewer; else None."""
    if not has_tokenizer(source.folder):
        return None
    try:
        known = open_tokenizer(source.folder).vocab_size
    except ConversionError:
        return None  # An import copies it unread; training says what is wrong with it.
    size = _settings_of_backbone(source.config).get("vocab_size")
    return known if type(size) is int and known > size else None


def _settings_of_backbone(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
