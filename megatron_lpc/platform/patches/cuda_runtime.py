"""Calls of `torch.cuda` that megatron-core makes whatever the device: current device, streams, synchronisation."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch, replace


class _Event:
    """Stands for an event of a CUDA stream. On a CPU the work before it is done already."""

    def synchronize(self) -> None: ...


class _Stream:
    """Stands for a CUDA stream. On a CPU all work is done at once, in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self, event: Any = None) -> _Event:
        """For the token dispatcher of experts, which copies its counts to the host on a stream of its own."""
        return _Event()

    def synchronize(self) -> None: ...


@patch(
    *MEGATRON_CORE,
    symptom="`torch.cuda.current_device()` and `torch.cuda.Stream()` within megatron-core fail without a GPU.",
)
def redirect_cuda_runtime() -> None:
    """Answer for a device that is the CPU and has one stream.

    megatron-core passes `torch.cuda.current_device()` as `device=` nearly everywhere; streams belong to the gradient
    buffers of data parallelism and to experts; `synchronize` to barriers, timers and checkpoint savers.
    """
    cpu = torch.device("cpu")
    replace(torch.cuda, "current_device", lambda: cpu)
    replace(torch.cuda, "set_device", lambda device: None)
    replace(torch.cuda, "device_count", lambda: 1)
    replace(torch.cuda, "synchronize", lambda device=None: None)
    replace(torch.cuda, "empty_cache", lambda: None)
    replace(torch.cuda, "Stream", _Stream)
    replace(torch.cuda, "current_stream", lambda device=None: _Stream())
    replace(torch.cuda, "default_stream", lambda device=None: _Stream())
    replace(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
