"""Write a torch_dist checkpoint a tensor at a time by torch's own storage: no model, no process group."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

from megatron_lpc.convert.tensor_files import TensorInfo
from megatron_lpc.training.checkpoint_folder import write_description

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
    """Returns the block."""


def write_checkpoint(folder: Path, pieces: Sequence[Piece], description: dict[str, Any]) -> None:
    """Write weights and their description.

    Memory: one piece.

    Args:
        folder: an existing folder.
        pieces: together the pieces of a name must cover its shape.
        description: content of description.json.
    """
    # A file for each piece: torch's writer keeps the last tensor of every name until the file that it is in ends.
    writer = _Writer(folder, single_file_per_rank=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # On purpose: `no_dist`.
        try:
            save({}, storage_writer=writer, planner=_PiecePlanner(pieces), no_dist=True)
        except CheckpointException as error:
            # torch wraps every error, even an interruption by the user; show the cause.
            (cause, _) = next(iter(error.failures.values()))
            raise cause from error
    torch.save({}, folder / "common.pt")
    write_description(folder, description)
    (folder / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        """Nothing: the index would name the present folder, as a path object that a careful reader refuses."""
        return None


class _PiecePlanner(SavePlanner):
    """Tells torch's writer what pieces there are, and makes each when it is about to be written."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = {MetadataIndex(piece.name, piece.offsets): piece for piece in pieces}

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(index, piece) for index, piece in self.pieces.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        tensors: dict[str, Any] = {}
        for item in all_plans[0].items:
            data = item.tensor_data
            assert data is not None
            whole = tensors.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
            whole.chunks.append(data.chunk)
        return all_plans, Metadata(tensors)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        piece = self.pieces[MetadataIndex(write_item.index.fqn, write_item.index.offset)]
        tensor = piece.make()
        assert (tuple(tensor.shape), tensor.dtype) == (piece.info.shape, piece.info.dtype), piece.name
        return tensor


def _write_item(index: MetadataIndex, piece: Piece) -> WriteItem:
    block = ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.info.shape))
    data = TensorWriteData(
        chunk=block,
        properties=TensorProperties(dtype=piece.info.dtype),
        size=torch.Size(piece.global_shape),
    )
    return WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)
