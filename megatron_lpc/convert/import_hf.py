"""Hugging Face -> megatron-core checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from megatron_lpc.convert.description import HF_FILES, ModelDescription, describe_hf, megatron_description, model_yaml
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hf_folder import HFFolder, TensorInfo
from megatron_lpc.convert.megatron_folder import Piece, write_checkpoint
from megatron_lpc.convert.output import new_folder, transfer_bar
from megatron_lpc.convert.weights import Weight

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of names that old versions of transformers saved and that hold no weights."""


def import_hf(hf: Path, output: Path, *, dtype: torch.dtype | None = None, force: bool = False) -> ModelDescription:
    """Write a checkpoint with the weights of a Hugging Face model, which training starts from by `--pretrained-checkpoint`.

    Beside the weights: model.yaml, the options of the model for a training configuration, and `hf/`, its config.json and tokenizer.

    Args:
        dtype: of the weights; kept when unset.
        force: replace what is at `output`.

    Raises:
        ConversionError: something cannot be converted, is damaged, or there is no room.
    """
    source = HFFolder(hf)
    described = describe_hf(source.config)
    check_tensors(source, described)
    pieces = [piece for weight in described.weights() for piece in _pieces(source, described, weight, dtype)]
    nbytes = sum(piece.info.nbytes for piece in pieces)
    with (
        new_folder(output, source=hf, nbytes=nbytes, force=force) as folder,
        transfer_bar(f"Importing {hf}", nbytes) as bar,
    ):
        carry_files(source, folder / HF_FILES)
        has_tokenizer = any((folder / HF_FILES).glob("tokenizer*"))
        tokenizer = str(output.absolute() / HF_FILES) if has_tokenizer else None
        (folder / "model.yaml").write_text(model_yaml(described, tokenizer), encoding="utf-8")
        write_checkpoint(folder, [_counted(piece, bar) for piece in pieces], megatron_description(described))
    return described


def carry_files(source: HFFolder, folder: Path) -> None:
    """Copy all that belongs to a model but its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(source.config, indent=2) + "\n", encoding="utf-8")
    for file in source.carried_files():
        shutil.copy(file, folder / file.name)


def check_tensors(source: HFFolder, described: ModelDescription) -> None:
    """Compare the tensors that are there with those that the settings promise.

    Raises:
        ConversionError: one is missing, left over or of another shape; or tied weights are there twice and differ.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for weight in described.weights():
        for place in weight.places(described.model):
            wanted |= zip(weight.hf_names(place), weight.hf_shapes(described.model), strict=True)
    found = {name: info.shape for name, info in source.tensors.items() if not name.endswith(_BUFFERS)}
    head, embedding = (described.hf_prefix + name for name in ("lm_head.weight", "model.embed_tokens.weight"))
    if head not in wanted and head in found and embedding in found:
        if not torch.equal(source.read(head), source.read(embedding)):
            raise ConversionError(
                f"{source.folder}: {head} differs from {embedding}, but config.json says tie_word_embeddings"
            )
        del found[head]
    for problem, names in (
        ("lacks", wanted.keys() - found.keys()),
        ("holds the unknown", found.keys() - wanted.keys()),
    ):
        if names:
            raise ConversionError(
                f"{source.folder}: {problem} {_few(sorted(names))}; is config.json that of these weights ({described.family.model_type})?"
            )
    _compare_shapes(source.folder, found, wanted)


def _compare_shapes(folder: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ConversionError(
                f"{folder}: {name} has shape {list(found[name])}, but config.json makes it {list(shape)}"
            )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


def _pieces(source: HFFolder, described: ModelDescription, weight: Weight, dtype: torch.dtype | None) -> list[Piece]:
    """A tensor of the checkpoint, layer by layer and expert by expert."""
    shape = weight.shape(described.model)
    pieces = []
    for place in weight.places(described.model):
        names = weight.hf_names(place)
        kinds = {source.tensors[name].dtype for name in names}
        if dtype is None and len(kinds) > 1:
            raise ConversionError(
                f"{source.folder}: {', '.join(names)} are of different types and become one tensor; choose one with --dtype"
            )
        kept = dtype or kinds.pop()

        stacked = (1,) * len(place) + shape

        def make(names: list[str] = names, kept: torch.dtype = kept, stacked: tuple[int, ...] = stacked) -> Tensor:
            return weight.transform.join(described.model, [source.read(name) for name in names]).to(kept).view(stacked)

        offsets = place + (0,) * len(shape)
        info = TensorInfo(stacked, kept)
        pieces.append(Piece(weight.name, weight.global_shape(described.model), offsets, info, make))
    return pieces


def _counted(piece: Piece, bar: Progress) -> Piece:
    def make() -> Tensor:
        tensor = piece.make()
        bar.advance(bar.task_ids[0], piece.info.nbytes)
        return tensor

    return Piece(piece.name, piece.global_shape, piece.offsets, piece.info, make)
