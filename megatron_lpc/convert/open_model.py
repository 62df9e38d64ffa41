"""A model in either format behind one interface, for the commands that read both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_lpc.config import ConfigError
from megatron_lpc.convert.companions import find_tokenizer, has_tokenizer, open_tokenizer
from megatron_lpc.convert.description import ModelDescription, describe_hf, describe_megatron
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import check_stored, tensor_groups
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.hf_writer import TensorGroup
from megatron_lpc.convert.import_hf import check_tensors
from megatron_lpc.convert.logits import hf_logits, megatron_logits
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.convert.tensor_files import TensorInfo
from megatron_lpc.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A folder whose tensors are those that its description calls for."""

    kind: str
    """Name of the format."""
    described: ModelDescription
    groups: Sequence[TensorGroup]
    """All tensors, under Hugging Face's names, in the order of the forward pass."""
    stored: dict[str, TensorInfo]
    """All tensors as they are stored."""
    logits: Callable[[Sequence[Tensor]], list[Tensor]]
    """[B, S, V] fp32 logits of each [B, S] of token ids, without a latent."""
    tokenizer: Path | None
    """Folder or file of the tokenizer, where there is one."""
    run: dict[str, Any]
    """What a training run wrote beside the weights; empty for a Hugging Face model."""

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, where there is one.

        Raises:
            ConversionError: it cannot be loaded.
        """
        return open_tokenizer(self.tokenizer) if self.tokenizer else None


def open_model(path: Path, hf_config: Path | None = None) -> OpenedModel:
    """Open a Hugging Face folder, or a checkpoint (or a folder of several, whose latest is meant).

    Args:
        hf_config: folder of the original config.json of a checkpoint (see `describe_megatron`).

    Raises:
        ConversionError: the folder is neither, or its tensors are not those that it describes.
    """
    if (path / "config.json").is_file():
        return _open_hf(path)
    try:
        checkpoint = MegatronFolder(path)
    except ConfigError as error:
        raise ConversionError(
            f"{path}: neither a Hugging Face model (config.json) nor a checkpoint: {error}"
        ) from error
    return _open_megatron(path, checkpoint, hf_config)


def _open_hf(path: Path) -> OpenedModel:
    source = HFFolder(path)
    described = describe_hf(source.config)
    check_tensors(source, described)
    return OpenedModel(
        kind="Hugging Face",
        described=described,
        groups=[_single_tensor(source, name) for name in _hf_names(described)],
        stored=source.tensors,
        logits=partial(hf_logits, path),
        tokenizer=path if has_tokenizer(path) else None,
        run={},
    )


def _open_megatron(path: Path, source: MegatronFolder, hf_config: Path | None) -> OpenedModel:
    described = describe_megatron(path, hf_config)
    check_stored(source, described)
    return OpenedModel(
        kind="megatron-core checkpoint",
        described=described,
        groups=tensor_groups(source, described),
        stored=source.tensors,
        logits=partial(megatron_logits, source.folder, described.stored_model),
        tokenizer=find_tokenizer(source.folder, hf_config),
        run=source.description,
    )


def _hf_names(described: ModelDescription) -> list[str]:
    """Names of all tensors of a model, in the order of the forward pass."""
    names = []
    for weight in described.weights():
        for place in weight.places(described.model):
            names += weight.hf_names(place)
    return names


def _single_tensor(source: HFFolder, name: str) -> TensorGroup:
    return TensorGroup({name: source.tensors[name]}, lambda: [source.read(name)])
