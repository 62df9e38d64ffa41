"""Large tensors in huge pages where Linux has them: a CPU takes longer to be given pages of 4 KiB than to fill them."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

_HUGE = 1 << 21
"""Bytes from which on it is worth while, and those of a huge page on x86."""


def large(make: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """make(shape), of `torch.empty` or `torch.zeros`; zeros anyway where pages are fresh."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return make(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # A kernel built without them: small pages then serve.
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
