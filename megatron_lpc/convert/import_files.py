"""What an imported checkpoint holds beside its weights.

Its description, options for a training configuration, and the original's config.json and tokenizer.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from megatron_lpc.config import Role, options_with_role
from megatron_lpc.convert.companions import HF_FILES, companion_files, has_tokenizer
from megatron_lpc.convert.description import ModelDescription
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.model_options import weight_options
from megatron_lpc.files import write_json, write_text


def write_companions(folder: Path, source: HFFolder, described: ModelDescription, *, final_name: Path) -> None:
    """Write `hf/`, the original's config.json, generation settings and tokenizer, and model.yaml.

    Args:
        folder: where the import is being written.
        source: the original.
        described: the same, as this project describes it.
        final_name: name that `folder` will have.
    """
    copies = folder / HF_FILES
    copies.mkdir()
    write_json(copies / "config.json", source.config)
    for file in companion_files(source.folder):
        shutil.copy(file, copies / file.name)
    tokenizer = str(final_name.absolute() / HF_FILES) if has_tokenizer(copies) else None
    write_text(folder / "model.yaml", model_yaml(described, tokenizer))


def megatron_description(described: ModelDescription) -> dict[str, Any]:
    """What an imported checkpoint states of itself, in the form in which a training run reads it."""
    latent = dict(described.latent) if described.latent else {"latent_mode": "none"}
    description: dict[str, Any] = {"options": {"model": asdict(described.stored_model), "latent": latent}}
    if described.code_names:
        description["code_names"] = described.code_names
    return description


def model_yaml(described: ModelDescription, tokenizer: str | None) -> str:
    """The part of a training configuration that follows from the model.

    Args:
        tokenizer: value of `tokenizer_model`; left out when unset.
    """
    sections: dict[str, Any] = {"model": weight_options(described.stored_model)}
    if described.latent:
        head = options_with_role(Role.HEAD)
        sections["latent"] = {name: described.latent[name] for name in head if name in described.latent}
    if tokenizer:
        sections["data"] = {"tokenizer_model": tokenizer}
    return yaml.safe_dump(sections, sort_keys=False)
