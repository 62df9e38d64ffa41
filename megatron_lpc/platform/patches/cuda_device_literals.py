"""Tensors that megatron-core makes on the device "cuda" by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch, replace

_FACTORIES = (
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand",
    "randn",
)


@patch(
    *MEGATRON_CORE, symptom='`torch.zeros(..., device="cuda")` within megatron-core fails on a machine without a GPU.'
)
def redirect_cuda_device_literals() -> None:
    """Let torch's factories answer `device="cuda"` with a tensor on the CPU, and `Tensor.cuda` with the tensor itself.

    megatron-core asks for it in the token counters of its pipeline schedules, in `clip_grads`, overflow flags, causal
    masks and checkpoint savers. `Tensor.cuda` is called by tied embeddings (`language_module`) and, through
    `ShardedTensor.init_data`, by the fully parallel checkpoint loader.
    """
    # torch collects the functions that obey `with torch.device(...)` at the first such block.
    # It must find its own functions, not our replacements.
    with torch.device("cpu"):
        torch.empty(0)
    for name in _FACTORIES:
        replace(torch, name, _on_cpu(getattr(torch, name)))
    replace(torch.Tensor, "cuda", lambda self, *args, **kwargs: self)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def redirected(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        return factory(*args, **kwargs)

    return redirected
