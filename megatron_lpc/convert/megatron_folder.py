"""Read the weights of a torch_dist checkpoint a tensor at a time: no model, no process group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.pages import recycled
from megatron_lpc.convert.stored_tensor import read_stored
from megatron_lpc.convert.tensor_files import TensorInfo, is_finite
from megatron_lpc.outside.messages import reason
from megatron_lpc.training.checkpoint_folder import read_description, resolve_checkpoint
from megatron_lpc.training.tensor_index import file_ends, read_tensor_index


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
        self._places = index.storage_data or {}
        self._check_files(file_ends(index))

    def _check_files(self, ends: Mapping[str, int]) -> None:
        """Refuse an index that claims more than there is, before memory is taken for it."""
        for name, end in ends.items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size < end:
                raise ConversionError(
                    f"{file}: cannot be read (the index names {end:,} bytes in it); a file is missing or truncated"
                )
        for name, info in self.tensors.items():
            if info.nbytes > sum(ends.values()):
                raise ConversionError(f"{self.folder}: {name} of shape {list(info.shape)} is larger than all files")

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

        try:
            tensor = self._assembled(items, tuple(sizes), stored.properties.dtype)
        except Exception as error:  # What a damaged pickle raises is not bounded.
            raise ConversionError(
                f"{self.folder}: {name} cannot be read ({reason(error)}); a file is missing or truncated"
            ) from error
        if not is_finite(tensor):
            raise ConversionError(
                f"{self.folder}: {name} holds NaN or infinity; the files are damaged, or training diverged"
            )
        return tensor

    def _assembled(self, items: Sequence[ReadItem], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """One block from the stored pieces that cover it. A single piece is taken as it is, without a copy."""
        if len(items) == 1:
            return self._piece(items[0])
        tensor = recycled(shape, dtype)
        for item in items:
            _narrowed(tensor, item.dest_offsets, item.lengths).copy_(self._piece(item))
        return tensor

    def _piece(self, item: ReadItem) -> Tensor:
        place = self._places[item.storage_index]
        tensor = read_stored(self.folder / place.relative_path, place.offset, place.length)
        return _narrowed(tensor, item.storage_offsets, item.lengths)


def _narrowed(tensor: Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    for axis, (start, size) in enumerate(zip(offsets, sizes, strict=True)):
        tensor = tensor.narrow(axis, start, size)
    return tensor
