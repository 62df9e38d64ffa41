"""megatron-core checkpoint -> Hugging Face."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from megatron_lpc.convert.description import ModelDescription, describe_megatron, find_hf_files
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.head import CODE_FILES, head_settings
from megatron_lpc.convert.hf_folder import CARRIED, TensorInfo
from megatron_lpc.convert.hf_writer import TensorGroup, write_safetensors
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.convert.output import new_folder, transfer_bar
from megatron_lpc.convert.weights import EMBEDDING, OUTPUT, Weight


def export_hf(
    load: Path,
    output: Path,
    *,
    hf_config: Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    backbone_only: bool = False,
    code_names: list[str] | None = None,
    force: bool = False,
) -> ModelDescription:
    """Write a Hugging Face model with the weights of a checkpoint: one that `AutoModelForCausalLM` loads, with `trust_remote_code` where it
    has a head.

    Args:
        load: folder of a checkpoint, or of several, whose newest is meant.
        hf_config: folder of the original config.json and tokenizer (see `describe_megatron`).
        dtype: of the weights; kept when unset.
        max_shard_bytes: of a file of weights.
        backbone_only: leave the head out.
        code_names: what the codes are called; what the checkpoint says when unset.
        force: replace what is at `output`.

    Raises:
        ConversionError: something cannot be converted, is damaged, or there is no room.
        ConfigError: no checkpoint is there.
    """
    source = MegatronFolder(load)
    described = describe_megatron(load, hf_config)
    if code_names is not None:
        described = _named(described, code_names)
    check_stored(source, described)
    if backbone_only:
        described = described.without_head()
    groups = tensor_groups(source, described, dtype)
    nbytes = sum(info.nbytes for group in groups for info in group.tensors.values())
    with (
        new_folder(output, source=source.folder, nbytes=nbytes, force=force) as folder,
        transfer_bar(f"Exporting {load}", nbytes) as bar,
    ):
        kept = dtype or source.tensors[EMBEDDING.name].dtype
        (folder / "config.json").write_text(json.dumps(_config(described, kept), indent=2) + "\n", encoding="utf-8")
        for file in _carried(source, hf_config) + (CODE_FILES if described.latent else []):
            shutil.copy(file, folder / file.name)
        write_safetensors(folder, [_counted(group, bar) for group in groups], max_shard_bytes)
    return described


def check_stored(source: MegatronFolder, described: ModelDescription) -> None:
    """Compare the tensors in a checkpoint with those that its options promise.

    Raises:
        ConversionError: one is missing, left over or of another shape.
    """
    wanted = {weight.name: weight.global_shape(described.model) for weight in described.weights()}
    for problem, names in (
        ("lacks", wanted.keys() - source.tensors.keys()),
        ("holds the unknown", source.tensors.keys() - wanted.keys()),
    ):
        if names:
            raise ConversionError(
                f"{source.folder}: {problem} {', '.join(sorted(names)[:3])}; is its description.json of another run?"
            )
    for name, shape in wanted.items():
        stored = source.tensors[name].shape
        if name in (EMBEDDING.name, OUTPUT.name) and stored[0] >= shape[0]:
            stored = shape[:1] + stored[1:]  # Padded rows are no words.
        if stored != shape:
            raise ConversionError(
                f"{source.folder}: {name} has shape {list(stored)}, but its options make it {list(shape)}"
            )


def _named(described: ModelDescription, code_names: list[str]) -> ModelDescription:
    codes = described.latent["codebook_size"] if described.latent else 0
    if len(code_names) != codes:
        raise ConversionError(f"--code-names: names {len(code_names)} codes, the model has {codes}")
    return replace(described, code_names=code_names)


def tensor_groups(
    source: MegatronFolder, described: ModelDescription, dtype: torch.dtype | None = None
) -> list[TensorGroup]:
    """Tensors of a checkpoint as Hugging Face's, layer by layer and expert by expert, in the stored dtype unless another is given."""
    groups = []
    for weight in described.weights():
        kept = dtype or source.tensors[weight.name].dtype
        for place in weight.places(described.model):
            infos = [TensorInfo(part, kept) for part in weight.hf_shapes(described.model)]
            make = partial(_read_parts, source, described, weight, place, kept)
            groups.append(TensorGroup(dict(zip(weight.hf_names(place), infos, strict=True)), make))
    return groups


def _read_parts(
    source: MegatronFolder, described: ModelDescription, weight: Weight, place: tuple[int, ...], dtype: torch.dtype
) -> list[Tensor]:
    shape = weight.shape(described.model)
    # Rows beyond the vocabulary, which the model pads to a round number, are not asked for.
    tensor = source.read(weight.name, place + (0,) * len(shape), (1,) * len(place) + shape).view(shape)
    return [part.to(dtype) for part in weight.transform.split(described.model, tensor)]


def _config(described: ModelDescription, dtype: torch.dtype) -> dict[str, Any]:
    """config.json. The original's fields stay, so that the versions of transformers that could read it still can."""
    settings = dict(described.settings)
    settings["dtype" if "dtype" in settings else "torch_dtype"] = str(dtype).removeprefix("torch.")
    settings.pop("auto_map", None)
    return head_settings(settings, described.latent, described.code_names) if described.latent else settings


def _carried(source: MegatronFolder, hf_config: Path | None) -> list[Path]:
    """Tokenizer and generation settings of the original, or else the tokenizer that the run was trained with."""
    origin = hf_config or find_hf_files(source.folder)
    trained_with = source.description.get("options", {}).get("data", {}).get("tokenizer_model", "")
    folders = [
        folder
        for folder in (origin, Path(trained_with))
        if folder is not None and str(folder) != "." and folder.is_dir()
    ]
    if folders:
        return sorted({path for pattern in CARRIED for path in folders[0].glob(pattern) if path.is_file()})
    return [Path(trained_with)] if Path(trained_with).is_file() else []


def _counted(group: TensorGroup, bar: Progress) -> TensorGroup:
    def make() -> Sequence[Tensor]:
        tensors = group.make()
        bar.advance(bar.task_ids[0], sum(info.nbytes for info in group.tensors.values()))
        return tensors

    return TensorGroup(group.tensors, make)
