"""One tensor of a model on both sides: names, shapes, and the pure functions between Hugging Face and megatron-core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

import torch
from torch import Tensor

from megatron_lpc.config import ModelConfig, head_width
from megatron_lpc.convert.pages import recycled

Shape = tuple[int, ...]
Place = tuple[int, ...]
"""Index along the leading axes of a stacked tensor: (), (layer,) or (layer, expert)."""


@dataclass(frozen=True)
class Transform:
    """Hugging Face's parts of a tensor -> megatron-core's tensor, and back.

    Both functions only move elements, so a round trip is exact. They also run on meta tensors, which gives shapes
    before anything is read.
    """

    join: Callable[[ModelConfig, Sequence[Tensor]], Tensor]
    split: Callable[[ModelConfig, Tensor], list[Tensor]]


def _take_single(model: ModelConfig, parts: Sequence[Tensor]) -> Tensor:
    return parts[0]


def _as_single(model: ModelConfig, tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _join_gate_up(model: ModelConfig, parts: Sequence[Tensor]) -> Tensor:
    return _joined(list(parts))


def _split_gate_up(model: ModelConfig, tensor: Tensor) -> list[Tensor]:
    return list(tensor.chunk(2))


def _join_qkv(model: ModelConfig, parts: Sequence[Tensor]) -> Tensor:
    grouped = [part.unflatten(0, (model.num_query_groups, -1)) for part in parts]
    return _joined(grouped, dim=1).flatten(0, 1)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` of tensors on the CPU."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.size(dim) for part in parts)
    dtype = reduce(torch.promote_types, [part.dtype for part in parts])
    return torch.cat(parts, dim, out=recycled(tuple(shape), dtype))


def _split_qkv(model: ModelConfig, tensor: Tensor) -> list[Tensor]:
    assert model.num_query_groups is not None
    key_rows = head_width(model)
    query_rows = model.num_attention_heads // model.num_query_groups * key_rows
    grouped = tensor.unflatten(0, (model.num_query_groups, -1))
    parts = grouped.split([query_rows, key_rows, key_rows], dim=1)
    return [part.flatten(0, 1) for part in parts]


def _join_fused_qkv(model: ModelConfig, parts: Sequence[Tensor]) -> Tensor:
    assert model.num_query_groups is not None
    heads = (model.num_attention_heads, model.num_query_groups, model.num_query_groups)
    (fused,) = parts
    return _join_qkv(model, fused.split([number * head_width(model) for number in heads]))


def _split_fused_qkv(model: ModelConfig, tensor: Tensor) -> list[Tensor]:
    return [torch.cat(_split_qkv(model, tensor))]


SAME = Transform(join=_take_single, split=_as_single)
"""One tensor on both sides."""
GATE_UP = Transform(join=_join_gate_up, split=_split_gate_up)
"""`linear_fc1` is [gate; up]."""
QKV = Transform(join=_join_qkv, split=_split_qkv)
"""`linear_qkv` holds the query heads, the key head and the value head of each query group; its bias does too."""

FUSED_QKV = Transform(join=_join_fused_qkv, split=_split_fused_qkv)
"""The same from [all queries; all keys; all values] in one tensor."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint, which Hugging Face stores as one or more."""

    name: str
    """Name in the checkpoint.

    Tensors of layers are stacked along a leading axis, those of experts along a second one. The norms of a layer have
    TransformerEngine's names, which the portable layers use as well.
    """
    hf: tuple[str, ...]
    """Hugging Face's names of the parts, with `{layer}` for one per layer and `{expert}` for one per expert."""
    shape: Callable[[ModelConfig], Shape]
    """Shape in the checkpoint, without the axes of layers and experts and without padding of the vocabulary."""
    transform: Transform = SAME

    def stack(self, model: ModelConfig) -> Shape:
        """Sizes of the leading axes: layers and experts, layers, or none."""
        sizes = {"{layer}": model.num_layers, "{expert}": model.num_experts or 0}
        return tuple(size for mark, size in sizes.items() if mark in self.hf[0])

    def global_shape(self, model: ModelConfig) -> Shape:
        """Shape of the whole tensor in the checkpoint, without padding of the vocabulary."""
        return self.stack(model) + self.shape(model)

    def places(self, model: ModelConfig) -> Iterator[Place]:
        """Every index along the leading axes; the empty one, once, for a tensor outside of layers."""
        return product(*map(range, self.stack(model)))

    def hf_names(self, place: Place) -> list[str]:
        """Names of the parts at this place, in the order of `hf`."""
        indices = dict(zip(("layer", "expert"), place, strict=False))
        return [name.format(**indices) for name in self.hf]

    def hf_shapes(self, model: ModelConfig) -> list[Shape]:
        """Shapes of the parts, in the order of `hf`."""
        parts = self.transform.split(model, torch.empty(self.shape(model), device="meta"))
        return [tuple(part.shape) for part in parts]
