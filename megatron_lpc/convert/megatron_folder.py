"""Read the weights of a torch_dist checkpoint a tensor at a time by torch's own storage: no model, no process group."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.tensor_files import TensorInfo, is_finite
from megatron_lpc.training.checkpoint_folder import read_description, read_tensor_index, resolve_checkpoint


class MegatronFolder:
    """The weights of one checkpoint, of a training run or of an import, written in any parallel layout."""

    def __init__(self, path: Path) -> None:
        """Read the description and the index of tensors.

        Args:
            path: folder of one checkpoint, or of several, whose latest is meant.

        Raises:
            ConfigError: there is no checkpoint, or its index or description cannot be read.
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

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A block of a tensor, in the dtype in which it is stored.

        Args:
            offsets: first index of the block along every axis.
            sizes: shape of the block.

        Raises:
            ConversionError: a file is missing or damaged, no file holds all of the block, or a value is not finite.
        """
        stored = self._stored[name]
        block = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(name, stored, [block])
        covered = sum(item.lengths.numel() for item in items)
        if covered != block.sizes.numel():
            raise ConversionError(f"{self.folder}: only a part of {name} is stored; the checkpoint is damaged")

        planner = _BlockPlanner()
        if len(items) > 1:
            planner.tensor = torch.empty(tuple(sizes), dtype=stored.properties.dtype)
        try:
            self._reader.read_data(LoadPlan(items), planner).wait()
        except (OSError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise ConversionError(
                f"{self.folder}: {name} cannot be read ({reason}); a file is missing or truncated"
            ) from error
        assert planner.tensor is not None
        if not is_finite(planner.tensor):
            raise ConversionError(
                f"{self.folder}: {name} holds NaN or infinity; the files are damaged, or training diverged"
            )
        return planner.tensor


class _BlockPlanner(LoadPlanner):
    """Tells torch's reader where the pieces of one block go.

    With `tensor` set before reading, pieces are copied into it. Without, the block is stored as one piece, which
    becomes `tensor` as it is: a copy would double the memory of the largest tensor.
    """

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        if self.tensor is None:
            return cast(Tensor, _TakenPiece(self, read_item))
        target = self.tensor
        for axis, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(axis, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        pass

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("`MegatronFolder.read` makes its own plans")

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError("`MegatronFolder.read` makes its own plans")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError("`MegatronFolder.read` makes its own plans")

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError("`MegatronFolder.read` makes its own plans")

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError("weights are tensors")


@dataclass(frozen=True)
class _TakenPiece:
    """Stands in for a tensor to copy to, and hands the planner the tensor to copy from."""

    planner: _BlockPlanner
    item: ReadItem

    def detach(self) -> _TakenPiece:
        return self

    def size(self) -> torch.Size:
        return self.item.lengths

    def copy_(self, tensor: Tensor) -> None:
        self.planner.tensor = tensor
