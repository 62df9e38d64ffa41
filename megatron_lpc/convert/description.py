"""What a model is, whichever format it lies in: family, options, head, and the table of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_lpc.config import DataConfig, ModelConfig, Role, options_with_role
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.families import Family, complete, differing_options, fit_family, read_model, weight_options
from megatron_lpc.convert.head import BACKBONE_PREFIX, MODEL_TYPE, check_head, head_weights
from megatron_lpc.convert.hf_folder import read_json
from megatron_lpc.convert.weights import Weight
from megatron_lpc.data.tokenizer import load_tokenizer
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint

HF_FILES = "hf"
"""Folder within an imported checkpoint that keeps config.json, generation settings and tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A backbone, and a head or none."""

    family: Family
    model: ModelConfig
    settings: Mapping[str, Any]
    """config.json of the backbone."""
    latent: Mapping[str, Any] | None = None
    """Options of the head and of its training."""
    code_names: list[str] | None = None

    @property
    def hf_prefix(self) -> str:
        """Before the names of the backbone's tensors on Hugging Face."""
        return BACKBONE_PREFIX if self.latent else ""

    def weights(self) -> tuple[Weight, ...]:
        """All tensors, with their names on both sides."""
        backbone = [
            replace(w, hf=tuple(self.hf_prefix + name for name in w.hf)) for w in self.family.all_weights(self.model)
        ]
        return (*backbone, *(head_weights(self.model, self.latent) if self.latent else ()))

    def without_head(self) -> ModelDescription:
        return replace(self, latent=None, code_names=None)


def describe_hf(config: Mapping[str, Any]) -> ModelDescription:
    """The model that a config.json describes, with a head or without.

    Raises:
        ConversionError: naming the setting that has no counterpart here.
    """
    if config.get("model_type") != MODEL_TYPE:
        family, model = read_model(config)
        return ModelDescription(family=family, model=model, settings=config)
    for name in ("text_config", "latent"):
        if not isinstance(config.get(name), dict):
            raise ConversionError(f"config.json: model type {MODEL_TYPE} needs '{name}'")
    check_head(config["latent"], config.get("code_names"))
    family, model = read_model(config["text_config"])
    return ModelDescription(
        family=family,
        model=model,
        settings=config["text_config"],
        latent=config["latent"],
        code_names=config.get("code_names"),
    )


def describe_megatron(folder: Path, hf_config: Path | None = None) -> ModelDescription:
    """The model in a checkpoint, by the options that it was saved with.

    Args:
        hf_config: folder of the original config.json; when unset, that of the import from which training started, or else settings are
            made from the options.

    Raises:
        ConversionError: the options are not there, no family has them, or they differ from those of the config.json.
        ConfigError: no checkpoint is there.
    """
    options = read_description(resolve_checkpoint(folder)).get("options", {})
    if "model" not in options:
        raise ConversionError(
            f"{folder}: says nothing of its model (description.json); only checkpoints of megatron_lpc can be exported"
        )
    model = complete(ModelConfig(**options["model"]))
    if model.vocab_size is None:
        raise ConversionError(f"{folder}: description.json lacks the size of the vocabulary")
    origin = hf_config or find_hf_files(folder)
    if origin is None:
        family, settings = fit_family(model)
        settings |= _special_tokens(options.get("data", {}).get("tokenizer_model"))
    else:
        described = describe_hf(read_json(origin / "config.json"))
        family, settings = described.family, dict(described.settings)
        if differing := differing_options(described.model, model):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
            raise ConversionError(
                f"{folder}: its {flags} differ from {origin / 'config.json'}; name the right one with --hf-config"
            )
    latent = options.get("latent", {"latent_mode": "none"})
    names = read_description(resolve_checkpoint(folder)).get("code_names")
    has_head = latent["latent_mode"] != "none"
    return ModelDescription(
        family=family,
        model=model,
        settings=settings,
        latent=latent if has_head else None,
        code_names=names if has_head else None,
    )


def _special_tokens(tokenizer_model: str | None) -> dict[str, int | None]:
    """Fields of config.json that end and pad a text, which a family would otherwise take from its first model."""
    if not tokenizer_model or not Path(tokenizer_model).exists():
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=tokenizer_model))
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def find_hf_files(folder: Path) -> Path | None:
    """Files of Hugging Face beside an imported checkpoint, or beside the one that a run started from, however many runs ago."""
    seen: set[Path] = set()
    while (folder := resolve_checkpoint(folder)) not in seen:
        if (folder / HF_FILES / "config.json").is_file():
            return folder / HF_FILES
        seen.add(folder)
        start = read_description(folder).get("options", {}).get("checkpoint", {}).get("pretrained_checkpoint")
        if start is None or not Path(start).is_dir():
            return None
        folder = Path(start)
    return None


def megatron_description(described: ModelDescription) -> dict[str, Any]:
    """What an imported checkpoint says of itself, in the place where a training run looks for it."""
    latent = dict(described.latent) if described.latent else {"latent_mode": "none"}
    options = {"model": asdict(described.model), "latent": latent}
    return {"options": options} | ({"code_names": described.code_names} if described.code_names else {})


def model_yaml(described: ModelDescription, tokenizer: str | None) -> str:
    """The part of a training configuration that follows from the model.

    Args:
        tokenizer: value of `tokenizer_model`; left out where there is none.
    """
    sections: dict[str, Any] = {"model": weight_options(described.model)}
    if described.latent:
        head = options_with_role(Role.HEAD)
        sections["latent"] = {name: described.latent[name] for name in head if name in described.latent}
    if tokenizer:
        sections["data"] = {"tokenizer_model": tokenizer}
    return yaml.safe_dump(sections, sort_keys=False)
