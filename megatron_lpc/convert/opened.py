"""A model in either format behind one door, for the commands that read both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_lpc.config import ConfigError, DataConfig
from megatron_lpc.convert.description import ModelDescription, describe_hf, describe_megatron, find_hf_files
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import check_stored, tensor_groups
from megatron_lpc.convert.hf_folder import HFFolder, TensorInfo
from megatron_lpc.convert.hf_writer import TensorGroup
from megatron_lpc.convert.import_hf import check_tensors
from megatron_lpc.convert.logits import hf_logits, megatron_logits
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A folder whose tensors fit what it says of itself."""

    kind: str
    described: ModelDescription
    groups: Sequence[TensorGroup]
    """All tensors, under Hugging Face's names."""
    stored: dict[str, TensorInfo]
    """All tensors as they lie there."""
    logits: Callable[[Sequence[Tensor]], list[Tensor]]
    """[R, S, V] fp32 of each [R, S] of tokens, without a latent."""
    tokenizer: str | None
    """Folder or file of the tokenizer, where there is one."""
    run: dict[str, Any]
    """What a training run wrote beside the weights."""

    def load_tokenizer(self) -> Tokenizer | None:
        """Raises ConversionError when there is one and it cannot be loaded."""
        try:
            return load_tokenizer(DataConfig(tokenizer_model=self.tokenizer)) if self.tokenizer else None
        except ValueError as error:
            raise ConversionError(str(error)) from error


def open_model(path: Path, hf_config: Path | None = None) -> OpenedModel:
    """A Hugging Face folder, or a checkpoint (or a folder of several, whose newest is meant).

    Raises:
        ConversionError: the folder is neither, or its tensors are not those that it promises.
    """
    if (path / "config.json").is_file():
        hf = HFFolder(path)
        described = describe_hf(hf.config)
        check_tensors(hf, described)
        groups = [TensorGroup({name: hf.tensors[name]}, partial(_read_one, hf, name)) for name in hf_names(described)]
        return OpenedModel(
            kind="Hugging Face",
            described=described,
            groups=groups,
            stored=hf.tensors,
            logits=partial(hf_logits, path),
            tokenizer=str(path) if any(path.glob("tokenizer*")) else None,
            run={},
        )
    try:
        megatron = MegatronFolder(path)
    except ConfigError as error:
        raise ConversionError(
            f"{path}: neither a Hugging Face model (config.json) nor a checkpoint: {error}"
        ) from error
    described = describe_megatron(path, hf_config)
    check_stored(megatron, described)
    return OpenedModel(
        kind="megatron-core checkpoint",
        described=described,
        groups=tensor_groups(megatron, described),
        stored=megatron.tensors,
        logits=partial(megatron_logits, megatron.folder, described.model),
        tokenizer=_tokenizer_of(megatron, hf_config),
        run=megatron.description,
    )


def hf_names(described: ModelDescription) -> list[str]:
    """All tensors of a model, in the order of the forward pass."""
    weights = described.weights()
    return [name for weight in weights for place in weight.places(described.model) for name in weight.hf_names(place)]


def _read_one(folder: HFFolder, name: str) -> list[Tensor]:
    return [folder.read(name)]


def _tokenizer_of(checkpoint: MegatronFolder, hf_config: Path | None) -> str | None:
    for folder in (hf_config, find_hf_files(checkpoint.folder)):
        if folder is not None and any(folder.glob("tokenizer*")):
            return str(folder)
    trained_with = checkpoint.description.get("options", {}).get("data", {}).get("tokenizer_model")
    return trained_with if trained_with and Path(trained_with).exists() else None
