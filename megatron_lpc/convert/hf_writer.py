"""Write safetensors one tensor at a time: the writer of the library `safetensors` needs a whole file in memory.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, the length of the header, little-endian; the
header in JSON, tensor -> dtype, shape and position; then the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from megatron_lpc.convert.parallel import Work, run_in_threads
from megatron_lpc.convert.tensor_files import SAFETENSORS_DTYPES, TensorInfo
from megatron_lpc.files import write_json

_BLOCK_BYTES = 1 << 25
"""Rows that are read, checked and written as one: another thread checks the next while these are written."""
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
    make_rows: Callable[[int, int], Tensor] | None = None
    """Returns rows of a single tensor, from one index up to another: a large one is then never in memory as a whole."""

    @property
    def nbytes(self) -> int:
        """Size of all of them in bytes."""
        return sum(info.nbytes for info in self.tensors.values())


def write_safetensors(
    folder: Path, groups: Sequence[TensorGroup], max_shard_bytes: int, advance: Callable[[int], None] | None = None
) -> None:
    """Write model.safetensors, or shards with an index when there are more bytes than `max_shard_bytes`.

    A shard exceeds that only when it is a single tensor. Memory: the largest group and 512 MiB (`run_in_threads`).

    Args:
        advance: called in a thread with the number of bytes just written.
    """
    # Wider dtypes first keeps every tensor aligned to its own width, as readers expect.
    groups = sorted(groups, key=lambda group: -max(info.dtype.itemsize for info in group.tensors.values()))
    shards = _split_into_shards([item for group in groups for item in group.tensors.items()], max_shard_bytes)
    names = _file_names(len(shards))
    places: dict[str, _Place] = {}
    for file, shard in zip(names, shards, strict=True):
        places |= _start_file(folder / file, shard)
    parts = [part for group in groups for part in _parts(group, places)]
    # By position in the file: parts of several shards are neighbours, and threads write them at the same time.
    parts.sort(key=lambda part: part.places[0].start)
    run_in_threads([Work(part.memory, partial(_write, part, advance or (lambda nbytes: None))) for part in parts])
    if len(shards) > 1:
        _write_index(folder, dict(zip(names, shards, strict=True)))


@dataclass(frozen=True)
class _Part:
    """Tensors, or rows of one, that are made and written as one work."""

    infos: Sequence[TensorInfo]
    places: Sequence[_Place]
    make: Callable[[], Sequence[Tensor]]

    @property
    def memory(self) -> int:
        """Bytes. Several tensors take theirs twice: as they are read, and as they are split."""
        return sum(info.nbytes for info in self.infos) * min(2, len(self.infos))


def _parts(group: TensorGroup, places: Mapping[str, _Place]) -> list[_Part]:
    """The whole group; of a single large tensor, blocks of rows."""
    if group.make_rows is None or group.nbytes <= _BLOCK_BYTES:
        return [_Part(list(group.tensors.values()), [places[name] for name in group.tensors], group.make)]
    ((name, info),) = group.tensors.items()
    row_bytes = info.nbytes // info.shape[0]
    step = max(1, _BLOCK_BYTES // row_bytes)
    parts = []
    for start in range(0, info.shape[0], step):
        stop = min(start + step, info.shape[0])
        rows = replace(info, shape=(stop - start, *info.shape[1:]))
        place = replace(places[name], start=places[name].start + start * row_bytes)
        parts.append(_Part([rows], [place], partial(_rows, group.make_rows, start, stop)))
    return parts


def _rows(make_rows: Callable[[int, int], Tensor], start: int, stop: int) -> list[Tensor]:
    return [make_rows(start, stop)]


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


def _write(part: _Part, advance: Callable[[int], None]) -> None:
    for info, place, tensor in zip(part.infos, part.places, part.make(), strict=True):
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), place
        rest = tensor.contiguous().flatten().view(torch.uint8).numpy().data
        with place.lock, place.file.open("r+b", buffering=0) as stream:
            stream.seek(place.start)
            while rest:  # Linux writes 2 GiB at most.
                rest = rest[stream.write(rest) :]
        advance(info.nbytes)


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
