"""The model that answers: an export, or a run that is exported for the occasion, without running code from a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_lpc.config import DataConfig
from megatron_lpc.convert.companions import find_tokenizer, has_tokenizer
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.head import MODEL_TYPE
from megatron_lpc.convert.hf_settings import read_settings
from megatron_lpc.convert.hub.configuration_lpc import LPCConfig
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer
from megatron_lpc.generation.options import GenerateOptions, GenerationError
from megatron_lpc.outside.messages import reason
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint


@dataclass(frozen=True)
class OpenExport:
    """A model of transformers with the tokenizer of its training."""

    model: Any
    tokenizer: Tokenizer
    num_codes: int
    """0 for a model without codes."""
    has_head: bool

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end a response."""
        ids = self.model.generation_config.eos_token_id
        ids = [ids] if isinstance(ids, int) else ids
        return ids or [self.tokenizer.eos_id]

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""
        return self.model.config.get_text_config().max_position_embeddings


@contextmanager
def open_export(options: GenerateOptions) -> Iterator[OpenExport]:
    """The model that the options name; a temporary export is private, and removed at the end.

    Raises:
        GenerationError: there is no such model, or it has no tokenizer.
        ConversionError: the run cannot be exported.
        ConfigError: there is no checkpoint, or the tokenizer cannot be loaded.
    """
    if options.model is not None:
        yield _opened(options.model, _data_of_export(options.model), options)
        return
    assert options.load is not None
    with tempfile.TemporaryDirectory(prefix="megatron-lpc-generate-") as folder:
        export_hf(options.load, Path(folder) / "hf")
        yield _opened(Path(folder) / "hf", _data_of_run(options.load), options)


def _opened(folder: Path, data: DataConfig, options: GenerateOptions) -> OpenExport:
    from transformers import AutoConfig, AutoModelForCausalLM

    with input_errors():
        tokenizer = load_tokenizer(replace(data, trust_remote_code=options.trust_remote_code))
    settings = read_settings(folder)
    has_head = settings.get("model_type") == MODEL_TYPE
    # Our own classes, not the copies in the folder, which are code of whoever wrote it.
    model_class: Any = LPCForCausalLM if has_head else AutoModelForCausalLM
    config_class: Any = LPCConfig if has_head else AutoConfig.for_model
    try:
        model = model_class.from_pretrained(
            folder, config=config_class(**settings), dtype="auto", use_safetensors=True, trust_remote_code=False
        )
        model = model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    except Exception as error:  # transformers raises what its configurations and models raise.
        raise GenerationError(f"{folder}: cannot be loaded by transformers ({reason(error)})") from error
    is_lpc = has_head and not model.latent_head.is_continuous
    num_codes = len(model.latent_head.codebook) if is_lpc else 0
    return OpenExport(model=model, tokenizer=tokenizer, num_codes=num_codes, has_head=has_head)


def _data_of_export(folder: Path) -> DataConfig:
    """The tokenizer in an exported model's folder."""
    if not (folder / "config.json").is_file():
        raise GenerationError(f"--model {folder}: has no config.json; give the folder of an export, or a run as --load")
    if has_tokenizer(folder):
        return DataConfig(tokenizer_model=str(folder))
    for path in sorted(folder.glob("*.model")):
        return DataConfig(tokenizer_model=str(path))
    raise GenerationError(f"--model {folder}: has no tokenizer; copy its files into the folder")


def _data_of_run(load: Path) -> DataConfig:
    """The tokenizer and the chat template that a run was trained with."""
    checkpoint = resolve_checkpoint(load)
    saved = read_description(checkpoint).get("options", {}).get("data", {})
    name = find_tokenizer(checkpoint, None) or saved.get("tokenizer_model")
    if not name:
        raise GenerationError(f"--load {load}: has no tokenizer; export it with --hf-config, and give --model")
    return DataConfig(
        tokenizer_model=str(name),
        chat_template=saved.get("chat_template"),
        chat_template_date=saved.get("chat_template_date"),
    )
