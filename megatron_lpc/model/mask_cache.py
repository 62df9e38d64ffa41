"""One mask per micro-batch, however many layers and recomputations ask for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

from megatron_lpc.data.batch import PackingLayout

MAX_MASKS = 16
"""Masks that are kept: activation recomputation in a pipeline returns to as many micro-batches as are in flight."""

Mask = TypeVar("Mask")


class MaskCache(Generic[Mask]):
    """The masks of the packing layouts seen last; the oldest is forgotten first."""

    def __init__(self, make: Callable[[PackingLayout], Mask]) -> None:
        self._make = make
        self._masks: OrderedDict[int, tuple[Tensor, Mask]] = OrderedDict()

    def __call__(self, packing_layout: PackingLayout) -> Mask:
        """The mask that `make` returned for this layout, or returns now."""
        # The key is the address: recomputation passes a detached alias of the same memory.
        # The entry holds the tensor, so that its memory is not given to another layout.
        stacked = packing_layout.stacked
        address = stacked.data_ptr()
        if address not in self._masks:
            self._masks[address] = (stacked, self._make(packing_layout))
            if len(self._masks) > MAX_MASKS:
                self._masks.popitem(last=False)
        _, mask = self._masks[address]
        return mask
