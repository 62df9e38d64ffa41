"""Write a torch_dist checkpoint a tensor at a time, as torch's own writer would: no model, no process group."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_lpc.convert.parallel import Work, run_in_threads
from megatron_lpc.convert.tensor_files import TensorInfo
from megatron_lpc.training.checkpoint_folder import write_description
from megatron_lpc.training.checkpoint_integrity import without_crc32, write_manifest

_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""megatron-core's metadata.json."""


@dataclass(frozen=True)
class Piece:
    """A block of one tensor of a checkpoint."""

    name: str
    """Name of the tensor."""
    global_shape: tuple[int, ...]
    """Shape of the whole tensor."""
    offsets: tuple[int, ...]
    """First index of the block along every axis."""
    info: TensorInfo
    """Shape and dtype of the block."""
    make: Callable[[], Tensor]
    """Returns the block. It is called in a thread."""
    memory: int = 0
    """Bytes that `make` takes with its parts; those of the block when 0."""


def write_checkpoint(folder: Path, pieces: Sequence[Piece], description: dict[str, Any]) -> None:
    """Write weights and their description.

    Memory: the largest piece and 512 MiB (`run_in_threads`).

    As with `cp`, the operating system decides when bytes reach the disk: an import that a power failure ends can be
    repeated.

    Args:
        folder: an existing folder.
        pieces: together the pieces of a name must cover its shape.
        description: content of description.json.
    """
    places = _write_pieces(folder, pieces)
    index = Metadata(_tensors(pieces), storage_data=places, version=CURRENT_DCP_VERSION)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    torch.save({}, folder / "common.pt")
    write_description(folder, description)
    (folder / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")
    write_manifest(folder, {})


def _write_pieces(folder: Path, pieces: Sequence[Piece]) -> dict[MetadataIndex, _StorageInfo]:
    """Write a file for each piece, under the names that torch's writer gives; returns where each piece is."""
    places: dict[MetadataIndex, _StorageInfo] = {}
    works = []
    for number, piece in enumerate(pieces):
        name = f"__0_{number}.distcp"
        works.append(Work(piece.memory or piece.info.nbytes, partial(_write_piece, piece, folder / name)))
        # The length is set when the file is there.
        places[MetadataIndex(piece.name, torch.Size(piece.offsets))] = _StorageInfo(name, 0, 0)
    run_in_threads(works)
    for place in places.values():
        place.length = (folder / place.relative_path).stat().st_size
    return places


def _write_piece(piece: Piece, file: Path) -> None:
    tensor = piece.make()
    assert (tuple(tensor.shape), tensor.dtype) == (piece.info.shape, piece.info.dtype), piece.name
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()  # torch saves whole storages.
    with without_crc32(), file.open("wb") as stream:
        torch.save(tensor, stream)


def _tensors(pieces: Sequence[Piece]) -> dict[str, STORAGE_TYPES]:
    """torch's index of tensors: name -> dtype, whole shape, and the blocks that it is stored in."""
    tensors: dict[str, STORAGE_TYPES] = {}
    for piece in pieces:
        properties = TensorProperties(dtype=piece.info.dtype)
        whole = tensors.setdefault(
            piece.name, TensorStorageMetadata(properties, torch.Size(piece.global_shape), chunks=[])
        )
        assert isinstance(whole, TensorStorageMetadata)
        whole.chunks.append(ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.info.shape)))
    return tensors
