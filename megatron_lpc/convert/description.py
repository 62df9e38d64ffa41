"""What a model is, in whichever format it is stored: family, options, head, and the table of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_lpc.config import ModelConfig, canonical, saved_model, with_padded_query_groups
from megatron_lpc.convert.companions import find_hf_files, special_tokens
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.families import Family
from megatron_lpc.convert.head import BACKBONE_PREFIX, MODEL_TYPE, check_head, check_mode, head_weights
from megatron_lpc.convert.hf_settings import read_settings
from megatron_lpc.convert.model_options import as_flags, differing_options
from megatron_lpc.convert.settings import fit_family, read_model
from megatron_lpc.convert.weights import Weight
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A backbone, with or without an LPC head."""

    family: Family
    model: ModelConfig
    """Without padding, as Hugging Face has it."""
    settings: Mapping[str, Any]
    """config.json of the backbone."""
    padded_query_groups: int = 0
    """Query groups of zeros that the checkpoint has beyond those of the model."""
    latent: Mapping[str, Any] | None = None
    """Options of the head and of its training; None without a head."""
    code_names: list[str] | None = None

    @property
    def hf_prefix(self) -> str:
        """What Hugging Face's names of the backbone's tensors begin with."""
        return BACKBONE_PREFIX if self.latent else ""

    @property
    def stored_model(self) -> ModelConfig:
        """The model as the checkpoint has it: with the padded query groups."""
        return with_padded_query_groups(self.model, self.padded_query_groups)

    def weights(self) -> tuple[Weight, ...]:
        """All tensors, with their names on both sides, in the order of the forward pass."""
        backbone = []
        for weight in self.family.all_weights(self.model):
            names = tuple(self.hf_prefix + name for name in weight.hf)
            backbone.append(replace(weight, hf=names))
        head = head_weights(self.model, self.latent) if self.latent else ()
        return (*backbone, *head)


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
    code_names = config.get("code_names")
    check_head(config["latent"], code_names)
    family, model = read_model(config["text_config"])
    return ModelDescription(
        family=family,
        model=model,
        settings=config["text_config"],
        latent=config["latent"],
        code_names=code_names,
    )


def describe_megatron(folder: Path, hf_config: Path | None = None, *, backbone_only: bool = False) -> ModelDescription:
    """The model in a checkpoint, by the options that it was saved with.

    Args:
        folder: folder of one checkpoint, or of several, whose latest is meant.
        hf_config: folder of the original config.json. When unset, that of the import from which training started;
            without one, settings are made from the options.
        backbone_only: leave the head out, of whatever mode it is.

    Raises:
        ConversionError: the options are missing, no family has them, they differ from those of the config.json, or the
            head is of a mode that is not converted.
        ConfigError: there is no checkpoint.
    """
    saved = read_description(resolve_checkpoint(folder))
    options = saved.get("options", {})
    if "model" not in options:
        raise ConversionError(
            f"{folder}: description.json lacks the options of the model; "
            "only checkpoints of megatron_lpc can be exported"
        )
    try:
        stored_model = canonical(saved_model(options["model"]))
    except (ArithmeticError, ValueError) as error:
        raise ConversionError(f"{folder}: description.json describes no model ({error})") from error
    model = with_padded_query_groups(stored_model, 0)
    if model.vocab_size is None:
        raise ConversionError(f"{folder}: description.json lacks the vocabulary size")

    origin = hf_config or find_hf_files(folder)
    if origin is not None:
        family, settings = _settings_of_original(folder, model, origin)
    else:
        family, settings = fit_family(model)
        settings |= special_tokens(options.get("data", {}).get("tokenizer_model"))

    latent = options.get("latent", {"latent_mode": "none"})
    mode = latent.get("latent_mode", "none")
    has_head = mode != "none" and not backbone_only
    if has_head:
        check_mode(folder, mode)
    return ModelDescription(
        family=family,
        model=model,
        settings=settings,
        padded_query_groups=stored_model.padded_query_groups,
        latent=latent if has_head else None,
        code_names=saved.get("code_names") if has_head else None,
    )


def _settings_of_original(folder: Path, model: ModelConfig, origin: Path) -> tuple[Family, dict[str, Any]]:
    """Family and settings of an original, which must describe the model of the checkpoint in `folder`."""
    original = describe_hf(read_settings(origin))
    differing = differing_options(original.model, model)
    if differing:
        raise ConversionError(
            f"{folder}: its {as_flags(differing)} differ from {origin / 'config.json'}; "
            "name the right one with --hf-config"
        )
    return original.family, dict(original.settings)
