"""Tensors in huge pages of Linux: a CPU takes longer to get pages of 4 KiB from the kernel than to fill them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

_HUGE_PAGE_BYTES = 1 << 21
"""Size of a huge page on x86; smaller tensors do not gain."""


def in_huge_pages(
    allocate: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`allocate(shape)`, for `torch.empty` or `torch.zeros`; in huge pages if it is large and on a CPU.

    New pages are filled with zeros in either case.
    """
    size = math.prod(shape) * dtype.itemsize
    supported = device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE")
    if not supported or size < _HUGE_PAGE_BYTES:
        return allocate(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A Linux built without huge pages refuses; the tensor then has small pages.
    with suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
