"""Flat pieces of a sharded tensor as rectangles, which is all that a checkpoint can name.

A distributed optimizer owns contiguous elements of flattened parameters. Such a piece of a matrix is the end of a row,
whole rows, and the beginning of a row: at most three rectangles, each a view of the piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and sizes along each axis."""


def rectangles(shape: tuple[int, ...], start: int, end: int) -> Iterator[Rectangle]:
    """Split the elements [start, end) of a flattened tensor of a shape into rectangles, in the order of elements.

    A tensor of d axes gives at most 2 d - 1 rectangles.
    """
    if start >= end:
        return
    if len(shape) <= 1:
        yield ((start,), (end - start,)) if shape else ((), ())
        return
    row_size = math.prod(shape[1:])
    first_whole, end_whole = -(-start // row_size), end // row_size
    if first_whole > end_whole:  # All within one row.
        yield from _within_row(shape, end_whole, start, end)
        return
    yield from _within_row(shape, first_whole - 1, start, first_whole * row_size)
    if first_whole < end_whole:
        yield (first_whole, *(0 for _ in shape[1:])), (end_whole - first_whole, *shape[1:])
    yield from _within_row(shape, end_whole, end_whole * row_size, end)


def _within_row(shape: tuple[int, ...], row: int, start: int, end: int) -> Iterator[Rectangle]:
    row_start = row * math.prod(shape[1:])
    for offset, sizes in rectangles(shape[1:], start - row_start, end - row_start):
        yield (row, *offset), (1, *sizes)


def sharded_piece(leaf: Any, piece: Tensor, start: int, **changes: Any) -> list[ShardedTensor]:
    """Sharded tensors of a flat piece of what a leaf of a model's sharded state dict describes.

    Args:
        leaf: `ShardedTensor`, or `ShardedTensorFactory` for fused matrices, with the data of the whole local tensor.
        piece: 1-D; its memory is that of the tensors returned.
        start: first element of the piece within the flattened local tensor.
        changes: fields of `ShardedTensor` that differ from those of the leaf.

    Raises:
        NotImplementedError: a part of a fused matrix is not contiguous in it.
    """
    tensors = []
    for part_start, part in _parts(leaf):
        first = max(start, part_start)
        end = min(start + piece.numel(), part_start + math.prod(part.local_shape))
        for offset, sizes in rectangles(tuple(part.local_shape), first - part_start, end - part_start):
            size = math.prod(sizes)
            elements = piece[first - start : first - start + size]
            tensors.append(_sharded_rectangle(part, elements, offset, sizes, changes))
            first += size
    return tensors


def _parts(leaf: Any) -> Iterator[tuple[int, ShardedTensor]]:
    """The sharded tensors that one local tensor consists of, and the first element of each within it."""
    if not isinstance(leaf, ShardedTensorFactory):
        yield 0, leaf
        return
    for part in leaf.build():
        is_view = part.data.untyped_storage().data_ptr() == leaf.data.untyped_storage().data_ptr()
        if not (is_view and part.data.is_contiguous()):
            raise NotImplementedError(f"{part.key}: not a contiguous part of its parameter, so its state has no place")
        yield part.data.storage_offset() - leaf.data.storage_offset(), part


def _sharded_rectangle(
    part: ShardedTensor, elements: Tensor, offset: tuple[int, ...], sizes: tuple[int, ...], changes: dict[str, Any]
) -> ShardedTensor:
    """One rectangle of a part. Stacked axes become axes of the data, for only regular grids may omit them."""
    stacked = part.prepend_axis_num
    shape = (1,) * stacked + sizes
    inner = (whole + within for whole, within in zip(part.global_offset[stacked:], offset, strict=True))
    fields: dict[str, Any] = {
        "data": elements.view(shape),
        "dtype": elements.dtype,
        "local_shape": shape,
        "global_offset": (*part.global_offset[:stacked], *inner),
        "axis_fragmentations": None,
        "prepend_axis_num": 0,
    }
    return replace(part, **(fields | changes))
