"""Hugging Face -> megatron-core checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_lpc.command_line import first_few, warn
from megatron_lpc.convert.description import ModelDescription, describe_hf
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.import_files import megatron_description, write_companions
from megatron_lpc.convert.megatron_writer import Piece, write_checkpoint
from megatron_lpc.convert.output import new_folder
from megatron_lpc.convert.padded_groups import missing_query_groups, padded_to
from megatron_lpc.convert.resized_folder import ResizedHFFolder, token_ids_beyond
from megatron_lpc.convert.tensor_files import TensorInfo
from megatron_lpc.convert.weights import Place, Weight
from megatron_lpc.terminal import counted, transfer_bar

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Value of `--dtype` -> dtype of the written weights."""
_BUFFERS = ("rotary_emb.inv_freq",)
"""Name endings of tensors that old versions of transformers saved and that are not weights."""


def import_hf(
    hf: Path,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    vocab_size: int | None = None,
    query_groups_multiple: int = 1,
    force: bool = False,
) -> ModelDescription:
    """Write a checkpoint with the weights of a Hugging Face model; `--pretrained-checkpoint` starts training from it.

    Beside the weights: model.yaml, the options of the model for a training configuration; and `hf/`, its config.json
    and tokenizer.

    Args:
        hf: folder with config.json and weights.
        output: folder to write.
        dtype: dtype of the written weights; that of the original when unset.
        vocab_size: number of token ids to which the embedding and the LM head grow (`ResizedHFFolder`); 0 takes the
            tokenizer's, where that is larger. When unset, they stay as they are, and a tokenizer with more is named.
        query_groups_multiple: what must divide the number of query groups, padded with zeros (`padded_groups`).
        force: replace what is at `output`.

    Raises:
        ConversionError: something cannot be converted, a file is damaged, or the disk is too full.
    """
    source = _open_source(hf, vocab_size)
    described = describe_hf(source.config)
    check_tensors(source, described)
    padded = missing_query_groups(described.model, query_groups_multiple)
    described = replace(described, padded_query_groups=padded)
    importing = _Import(source, described, dtype)
    pieces = [piece for weight in described.weights() for piece in importing.pieces(weight)]
    nbytes = sum(piece.info.nbytes for piece in pieces)
    with (
        new_folder(output, source=hf, nbytes=nbytes, force=force) as folder,
        transfer_bar(f"Importing {hf}", nbytes) as advance,
    ):
        write_companions(folder, source, described, final_name=output)
        pieces = [replace(piece, make=counted(piece.make, piece.info.nbytes, advance)) for piece in pieces]
        write_checkpoint(folder, pieces, megatron_description(described))
    return described


def _open_source(hf: Path, vocab_size: int | None) -> HFFolder:
    source = HFFolder(hf)
    if vocab_size:
        return ResizedHFFolder(hf, vocab_size)
    needed = token_ids_beyond(source)
    if needed is None:
        return source
    if vocab_size == 0:
        return ResizedHFFolder(hf, needed)
    warn(
        f"{hf}: the tokenizer has {needed} token ids and the embedding fewer, so training refuses it; "
        "import with --resize-token-embeddings"
    )
    return source


def check_tensors(source: HFFolder, described: ModelDescription) -> None:
    """Compare the tensors in a folder with those that its settings call for.

    Raises:
        ConversionError: one is missing, left over or of another shape; or tied weights are stored twice and differ.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for weight in described.weights():
        for place in weight.places(described.model):
            wanted |= zip(weight.hf_names(place), weight.hf_shapes(described.model), strict=True)
    found = {name: info.shape for name, info in source.tensors.items() if not name.endswith(_BUFFERS)}

    lm_head = described.hf_prefix + "lm_head.weight"
    embedding = described.hf_prefix + "model.embed_tokens.weight"
    if lm_head not in wanted and lm_head in found and embedding in found:
        _check_tied_weights(source, lm_head, embedding)
        del found[lm_head]

    for problem, names in (
        ("lacks", wanted.keys() - found.keys()),
        ("holds the unknown", found.keys() - wanted.keys()),
    ):
        if names:
            raise ConversionError(
                f"{source.folder}: {problem} {first_few(sorted(names), 'tensors')}; "
                f"is config.json that of these weights ({described.family.model_type})?"
            )
    _check_shapes(source.folder, found, wanted)


def _check_tied_weights(source: HFFolder, lm_head: str, embedding: str) -> None:
    if not torch.equal(source.read(lm_head), source.read(embedding)):
        raise ConversionError(
            f"{source.folder}: {lm_head} differs from {embedding}, but config.json says tie_word_embeddings"
        )


def _check_shapes(folder: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ConversionError(
                f"{folder}: {name} has shape {list(found[name])}, but config.json makes it {list(shape)}"
            )


@dataclass(frozen=True)
class _Import:
    """Makes the tensors of a checkpoint from those of a Hugging Face model."""

    source: HFFolder
    described: ModelDescription
    dtype: torch.dtype | None
    """Of the written weights; that of the original when unset."""

    def pieces(self, weight: Weight) -> list[Piece]:
        """A tensor of the checkpoint, in one piece per layer and expert."""
        return [self._piece(weight, place) for place in weight.places(self.described.model)]

    def _piece(self, weight: Weight, place: Place) -> Piece:
        names = weight.hf_names(place)
        shape = weight.shape(self.described.stored_model)
        info = TensorInfo((1,) * len(place) + shape, self.dtype or self._common_dtype(names))

        def make() -> Tensor:
            parts = [self.source.read(name) for name in names]
            joined = weight.transform.join(self.described.model, parts).to(info.dtype)
            return padded_to(joined, shape).view(info.shape)

        offsets = place + (0,) * len(shape)
        whole_shape = weight.global_shape(self.described.stored_model)
        # What is joined or padded is in memory as it was, too.
        copies = min(2, len(names)) + (shape != weight.shape(self.described.model))
        return Piece(weight.name, whole_shape, offsets, info, make, memory=info.nbytes * copies)

    def _common_dtype(self, names: list[str]) -> torch.dtype:
        dtypes = {self.source.tensors[name].dtype for name in names}
        if len(dtypes) > 1:
            raise ConversionError(
                f"{self.source.folder}: {', '.join(names)} have different dtypes and become one tensor; "
                "choose one with --dtype"
            )
        return dtypes.pop()
