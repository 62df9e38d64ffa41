"""Memory for tensors that are joined one after the other: getting it fresh takes three times as long as the copy."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref

import torch
from torch import Tensor

_SMALL_BYTES = 1 << 20
"""Below, the allocator of torch keeps memory by itself."""
_MOST_KEPT_BYTES = 1 << 28
"""Memory that is kept for later tensors of the same size."""
_kept: dict[int, list[mmap.mmap]] = {}


def recycled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of undefined content, in the memory of one of the same size that nobody holds any more."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL_BYTES:
        return torch.empty(shape, dtype=dtype)
    try:
        pages = _kept.get(size, []).pop()
    except IndexError:
        pages = mmap.mmap(-1, size)
    # The tensor holds this object, whose end is that of the tensor and of all of its views.
    held = (ctypes.c_char * size).from_buffer(pages)
    weakref.finalize(held, _give_back, size, pages).atexit = False
    return torch.frombuffer(held, dtype=dtype).view(shape)


def _give_back(size: int, pages: mmap.mmap) -> None:
    kept_bytes = sum(each * len(free) for each, free in list(_kept.items()))
    if kept_bytes + size <= _MOST_KEPT_BYTES:
        _kept.setdefault(size, []).append(pages)
