"""Write safetensors one tensor at a time: safetensors' own writer wants a whole file in memory.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, the length of the header, little-endian; the header in JSON,
tensor -> dtype, shape and place; then the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_lpc.convert.hf_folder import TensorInfo

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that are made together, such as the three out of a fused one."""

    tensors: dict[str, TensorInfo]
    make: Callable[[], Sequence[Tensor]]
    """They, in this order."""


def write_safetensors(folder: Path, groups: Sequence[TensorGroup], max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards with an index when there are more bytes than `max_shard_bytes`.

    A shard exceeds that only by being a single tensor. Memory: one group.
    """
    # Wider numbers first keeps every tensor aligned to its own width, as readers expect.
    groups = sorted(groups, key=lambda group: -max(info.dtype.itemsize for info in group.tensors.values()))
    shards = _shards([item for group in groups for item in group.tensors.items()], max_shard_bytes)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    )
    tensors = _each(groups)
    for file, shard in zip(names, shards, strict=True):
        with (folder / file).open("wb") as stream:
            stream.write(_header(shard))
            for name in shard:
                made, tensor = next(tensors)
                assert made == name
                stream.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    if len(shards) > 1:
        total = sum(info.nbytes for shard in shards for info in shard.values())
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _each(groups: Sequence[TensorGroup]) -> Iterator[tuple[str, Tensor]]:
    for group in groups:
        yield from zip(group.tensors, group.make(), strict=True)


def _shards(tensors: Sequence[tuple[str, TensorInfo]], max_bytes: int) -> list[dict[str, TensorInfo]]:
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in tensors:
        if shards[-1] and size + info.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.nbytes
    return shards


def _header(shard: dict[str, TensorInfo]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, info in shard.items():
        header[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [place, place + info.nbytes],
        }
        place += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
