"""Write safetensors one tensor at a time: the writer of the library `safetensors` needs a whole file in memory.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, the length of the header, little-endian; the
header in JSON, tensor -> dtype, shape and position; then the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from megatron_lpc.convert.parallel import Work, run_in_threads
from megatron_lpc.convert.tensor_files import SAFETENSORS_DTYPES, TensorInfo
from megatron_lpc.files import write_json

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
Shard = dict[str, TensorInfo]
"""The tensors of one file, in the order in which they lie in it."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor begins."""

    file: Path
    start: int
    """In bytes."""
    lock: Lock
    """Of the file: the kernel lets one thread at a time write to it, and burns time while others wait."""


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are made together, such as the three parts of a fused one."""

    tensors: dict[str, TensorInfo]
    make: Callable[[], Sequence[Tensor]]
    """Returns the tensors, in the order of `tensors`. The writer calls it in a thread."""

    @property
    def nbytes(self) -> int:
        """Size of all of them in bytes."""
        return sum(info.nbytes for info in self.tensors.values())


def write_safetensors(folder: Path, groups: Sequence[TensorGroup], max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards with an index when there are more bytes than `max_shard_bytes`.

    A shard exceeds that only when it is a single tensor. Memory: the largest group and 512 MiB (`run_in_threads`).
    """
    # Wider dtypes first keeps every tensor aligned to its own width, as readers expect.
    groups = sorted(groups, key=lambda group: -max(info.dtype.itemsize for info in group.tensors.values()))
    shards = _split_into_shards([item for group in groups for item in group.tensors.items()], max_shard_bytes)
    names = _file_names(len(shards))
    places: dict[str, _Place] = {}
    for file, shard in zip(names, shards, strict=True):
        places |= _start_file(folder / file, shard)
    # A group of several tensors takes its memory twice: as it is read, and as it is split.
    run_in_threads(
        [Work(group.nbytes * min(2, len(group.tensors)), partial(_write, group, places)) for group in groups]
    )
    if len(shards) > 1:
        _write_index(folder, dict(zip(names, shards, strict=True)))


def _split_into_shards(tensors: Sequence[tuple[str, TensorInfo]], max_bytes: int) -> list[Shard]:
    shards: list[Shard] = [{}]
    size = 0
    for name, info in tensors:
        if shards[-1] and size + info.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.nbytes
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _start_file(path: Path, shard: Shard) -> dict[str, _Place]:
    """Write the header of a shard; returns where each of its tensors goes."""
    header = _header(shard)
    path.write_bytes(header)
    lock = Lock()
    places = {}
    start = len(header)
    for name, info in shard.items():
        places[name] = _Place(path, start, lock)
        start += info.nbytes
    return places


def _write(group: TensorGroup, places: Mapping[str, _Place]) -> None:
    for (name, info), tensor in zip(group.tensors.items(), group.make(), strict=True):
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), name
        rest = tensor.contiguous().flatten().view(torch.uint8).numpy().data
        place = places[name]
        with place.lock, place.file.open("r+b", buffering=0) as stream:
            stream.seek(place.start)
            while rest:  # Linux writes 2 GiB at most.
                rest = rest[stream.write(rest) :]


def _header(shard: Shard) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, info in shard.items():
        end = start + info.nbytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_index(folder: Path, shards: dict[str, Shard]) -> None:
    total = sum(info.nbytes for shard in shards.values() for info in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
