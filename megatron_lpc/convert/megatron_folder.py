"""A torch_dist checkpoint, read and written a tensor at a time by torch's own storage: no model, no process group."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter, save
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hf_folder import TensorInfo, is_finite
from megatron_lpc.training.checkpoint_folder import (
    read_description,
    read_tensor_index,
    resolve_checkpoint,
    write_description,
)

_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class Piece:
    """Part of one tensor of a checkpoint: what `make` gives lies at `offsets` in the whole of `global_shape`."""

    name: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    info: TensorInfo
    make: Callable[[], Tensor]


def write_checkpoint(folder: Path, pieces: Sequence[Piece], description: dict[str, Any]) -> None:
    """Write weights and their description; together the pieces of a name must cover its shape. Memory: one piece."""
    # A file for each piece: torch's writer keeps the last tensor of every name until the file that it is in ends.
    writer = _Writer(folder, single_file_per_rank=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # As it is meant to be.
        try:
            save({}, storage_writer=writer, planner=_Pieces(pieces), no_dist=True)
        except CheckpointException as error:
            (cause, _) = next(iter(error.failures.values()))
            raise cause from error  # What went wrong within; torch wraps even the user's interruption.
    torch.save({}, folder / "common.pt")
    write_description(folder, description)
    (folder / "metadata.json").write_text(json.dumps(_FORMAT), encoding="utf-8")


class _Writer(FileSystemWriter):
    def storage_meta(self) -> StorageMeta | None:
        """The index would name the folder of today, as a path object that a careful reader refuses."""
        return None


class _Pieces(SavePlanner):
    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = {MetadataIndex(piece.name, piece.offsets): piece for piece in pieces}

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan(
            [
                WriteItem(
                    index=index,
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.info.shape)),
                        properties=TensorProperties(dtype=piece.info.dtype),
                        size=torch.Size(piece.global_shape),
                    ),
                )
                for index, piece in self.pieces.items()
            ]
        )

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


@dataclass(frozen=True)
class _Taker:
    """Answers what torch's reader asks of the tensor that it copies to, and keeps the one that it copies from."""

    folder: MegatronFolder
    item: ReadItem

    def detach(self) -> _Taker:
        return self

    def size(self) -> torch.Size:
        return self.item.lengths

    def copy_(self, tensor: Tensor) -> None:
        self.folder._target = tensor


class MegatronFolder(LoadPlanner):
    """The weights of one checkpoint, of a training run or of an import, written in any layout."""

    def __init__(self, path: Path) -> None:
        """Read the description and the index of tensors.

        Args:
            path: folder of a checkpoint, or of several, whose newest is meant.

        Raises:
            ConfigError: no checkpoint is there, or its index or description cannot be read.
        """
        self.folder = resolve_checkpoint(path)
        self.description = read_description(self.folder)
        index = read_tensor_index(self.folder)
        self._stored = {
            name: entry
            for name, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith("optimizer.")
        }
        self.tensors = {
            name: TensorInfo(tuple(entry.size), entry.properties.dtype) for name, entry in self._stored.items()
        }
        self._reader = FileSystemReader(self.folder)
        self._reader.set_up_storage_reader(index, is_coordinator=True)
        self._target: Tensor | None = None

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A part of a tensor, in the dtype in which it is stored.

        Raises:
            ConversionError: a file is missing or damaged, no file holds the part, or a value is not finite.
        """
        stored = self._stored[name]
        items = create_read_items_for_chunk_list(
            name, stored, [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))]
        )
        covered = sum(item.lengths.numel() for item in items)
        if covered != torch.Size(sizes).numel():
            raise ConversionError(f"{self.folder}: {name} is there in part alone; the checkpoint is damaged")
        self._target = None if len(items) == 1 else torch.empty(tuple(sizes), dtype=stored.properties.dtype)
        try:
            self._reader.read_data(LoadPlan(items), self).wait()
        except (OSError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise ConversionError(
                f"{self.folder}: {name} cannot be read ({reason}); a file is missing or truncated"
            ) from error
        tensor, self._target = self._target, None
        assert tensor is not None
        if not is_finite(tensor):
            raise ConversionError(
                f"{self.folder}: {name} holds NaN or infinity; the files are damaged, or training diverged"
            )
        return tensor

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Where torch's reader puts what it has read. A part that was stored in one piece is taken over as it is: a copy would double the
        memory of the largest tensor."""
        if self._target is None:
            return cast(Tensor, _Taker(self, read_item))
        target = self._target
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(axis, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("`read` makes its own plans")

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError("`read` makes its own plans")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError("`read` makes its own plans")

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError("`read` makes its own plans")

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError("weights are tensors")
