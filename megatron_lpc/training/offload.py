"""Frozen weights that wait in host memory while no pass reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class OffloadedWeights:
    """Weights in pinned host memory, copied to the device for the time of a pass.

    They do not change, so nothing is ever copied back.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        """Take the weights off `device`."""
        self._device = device
        self._on_host: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in parameters:
            self._on_host.append((parameter, parameter.detach().cpu().pin_memory()))
        self._drop()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The weights are on the device within; the host does not wait for the copies."""
        for parameter, on_host in self._on_host:
            parameter.data = torch.empty_like(on_host, device=self._device).copy_(on_host, non_blocking=True)
        try:
            yield
        finally:
            self._drop()

    def _drop(self) -> None:
        for parameter, on_host in self._on_host:
            parameter.data = on_host
