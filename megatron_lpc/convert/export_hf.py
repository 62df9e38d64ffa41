"""megatron-core checkpoint -> Hugging Face."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_lpc.command_line import first_few
from megatron_lpc.convert.companions import files_to_export
from megatron_lpc.convert.decoder import EMBEDDING, LM_HEAD
from megatron_lpc.convert.description import ModelDescription, describe_megatron
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.head import CODE_FILES, HEAD_PREFIX, head_settings
from megatron_lpc.convert.hf_writer import TensorGroup, write_safetensors
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.convert.output import new_folder
from megatron_lpc.convert.padded_groups import check_padding
from megatron_lpc.convert.serving import check_servable, write_serving
from megatron_lpc.convert.tensor_files import TensorInfo
from megatron_lpc.convert.weights import SAME, Place, Weight
from megatron_lpc.files import write_json
from megatron_lpc.terminal import transfer_bar


def export_hf(
    load: Path,
    output: Path,
    *,
    hf_config: Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    form: Literal["whole", "backbone", "serving"] = "whole",
    code_names: list[str] | None = None,
    force: bool = False,
) -> ModelDescription:
    """Write a Hugging Face model with the weights of a checkpoint.

    `AutoModelForCausalLM` loads it; with `trust_remote_code=True` where it has a head.

    Args:
        load: folder of one checkpoint, or of several, whose latest is meant.
        output: folder to write.
        hf_config: folder of the original config.json and tokenizer (see `describe_megatron`).
        dtype: dtype of the written weights; that of the checkpoint when unset.
        max_shard_bytes: largest file of weights.
        form: the whole model; its backbone without the head; or the backbone and what `serving.write_serving` adds.
        code_names: one name per code; those that the checkpoint has when unset.
        force: replace what is at `output`.

    Raises:
        ConversionError: something cannot be converted, a file is damaged, or the disk is too full.
        ConfigError: there is no checkpoint.
    """
    source = MegatronFolder(load)
    backbone_only = form == "backbone"
    described = describe_megatron(load, hf_config, backbone_only=backbone_only)
    if code_names is not None:
        described = _with_code_names(described, code_names)
    check_stored(source, described, backbone_only=backbone_only)
    with_head = described
    if form == "serving":
        check_servable(load, described)
        described = replace(described, latent=None, code_names=None)
    groups = tensor_groups(source, described, dtype)
    nbytes = sum(group.nbytes for group in groups)
    with (
        new_folder(output, source=source.folder, nbytes=nbytes, force=force) as folder,
        transfer_bar(f"Exporting {load}", nbytes) as advance,
    ):
        write_json(folder / "config.json", _settings(described, dtype or source.tensors[EMBEDDING.name].dtype))
        for file in files_to_export(source.folder, hf_config):
            shutil.copy(file, folder / file.name)
        if described.latent:
            for file in CODE_FILES:
                shutil.copy(file, folder / file.name)
        write_safetensors(folder, groups, max_shard_bytes, advance)
        if form == "serving":
            write_serving(folder, source, with_head)
    return described


def check_stored(source: MegatronFolder, described: ModelDescription, *, backbone_only: bool = False) -> None:
    """Compare the tensors in a checkpoint, or of its backbone only, with those that its options call for.

    Raises:
        ConversionError: one is missing, left over or of another shape, or padded query groups are not zeros.
    """
    wanted = {weight.name: weight.global_shape(described.stored_model) for weight in described.weights()}
    held = {name for name in source.tensors if not (backbone_only and name.startswith(HEAD_PREFIX))}
    for problem, names in (("lacks", wanted.keys() - held), ("holds the unknown", held - wanted.keys())):
        if names:
            raise ConversionError(
                f"{source.folder}: {problem} {first_few(sorted(names), 'tensors')}; "
                "is its description.json that of another run?"
            )
    for name, shape in wanted.items():
        stored = source.tensors[name].shape
        if name in (EMBEDDING.name, LM_HEAD.name) and stored[0] >= shape[0]:
            # The rows beyond are padding of the vocabulary.
            stored = shape[:1] + stored[1:]
        if stored != shape:
            raise ConversionError(
                f"{source.folder}: {name} has shape {list(stored)}, but its options make it {list(shape)}"
            )
    check_padding(source, described)


def tensor_groups(
    source: MegatronFolder, described: ModelDescription, dtype: torch.dtype | None = None
) -> list[TensorGroup]:
    """Tensors of a checkpoint under Hugging Face's names, per layer and expert.

    Args:
        dtype: dtype of the made tensors; the stored one when unset.
    """
    groups = []
    for weight in described.weights():
        kept = dtype or source.tensors[weight.name].dtype
        infos = [TensorInfo(shape, kept) for shape in weight.hf_shapes(described.model)]
        for place in weight.places(described.model):
            tensors = dict(zip(weight.hf_names(place), infos, strict=True))
            read = _PartReader(source, described, weight, place, kept)
            groups.append(TensorGroup(tensors, read, read.rows if weight.transform is SAME else None))
    return groups


@dataclass(frozen=True)
class _PartReader:
    """Call it for Hugging Face's parts of one tensor, at one layer or expert."""

    source: MegatronFolder
    described: ModelDescription
    weight: Weight
    place: Place
    dtype: torch.dtype

    def __call__(self) -> list[Tensor]:
        model = self.described.model
        # Without padding of vocabulary and query groups: what is beyond this shape is not read.
        shape = self.weight.shape(model)
        tensor = self._read((0,) * len(shape), shape)
        return [part.to(self.dtype) for part in self.weight.transform.split(model, tensor)]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of the tensor, where it is the same on both sides."""
        rest = self.weight.shape(self.described.model)[1:]
        return self._read((start,) + (0,) * len(rest), (stop - start, *rest)).to(self.dtype)

    def _read(self, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        sizes = (1,) * len(self.place) + shape
        return self.source.read(self.weight.name, self.place + offsets, sizes).view(shape)


def _with_code_names(described: ModelDescription, code_names: list[str]) -> ModelDescription:
    codes = described.latent["codebook_size"] if described.latent else 0
    if len(code_names) != codes:
        raise ConversionError(f"--code-names: names {len(code_names)} codes, the model has {codes}")
    return replace(described, code_names=code_names)


def _settings(described: ModelDescription, dtype: torch.dtype) -> dict[str, Any]:
    """config.json. The original's fields stay: a version of transformers that read the original reads this too."""
    settings = dict(described.settings)
    settings["dtype" if "dtype" in settings else "torch_dtype"] = str(dtype).removeprefix("torch.")
    settings.pop("auto_map", None)
    if described.latent:
        return head_settings(settings, described.latent, described.code_names)
    return settings
