"""The one place that knows CUDA with NCCL from a CPU with gloo.

Everything above asks the `Platform` it is given; nothing else in this project names a device or a backend.
It must be imported before megatron-core; `megatron_lpc` itself sees to that.
"""

from __future__ import annotations

import resource
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch

if not torch.cuda.is_available():
    # A TransformerEngine without a GPU raises RuntimeError at import, and megatron-core expects ImportError alone.
    sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]

# Said by every process of every run: extensions that the portable layers do without, options that are not used, calls within core.
for _said in (
    "(Transformer Engine and )?Apex (is|are) not installed",
    "full scope is deprecated",
    "When using async grad allreduce",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
    # Its other name is new in torch 2.13; 2.11 has this one alone.
    "`torch.distributed.all_gather_into_tensor` is deprecated",
):
    warnings.filterwarnings(
        "ignore", message=_said, module=r"(megatron\.core|torch\.distributed\.(checkpoint|c10d_logger))"
    )


@dataclass(frozen=True)
class Platform:
    """Where a process computes and how it talks to the others."""

    device: torch.device
    backend: Literal["nccl", "gloo"]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """Name of the device, as its driver tells it."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else "cpu"

    def synchronize(self) -> None:
        """Wait until the device has done all work given to it."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def peak_memory_bytes(self) -> int:
        """Most memory held so far: of the device under CUDA, of the process on a CPU."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def transformer_options(self) -> dict[str, Any]:
        """`TransformerConfig` fields that depend on the device: fused CUDA extensions have no CPU twin."""
        if self.is_cuda:
            return {"batch_p2p_comm": True}
        return {"use_cpu_initialization": True, "batch_p2p_comm": False}


def select_platform(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> Platform:
    """Choose the platform of this process and prepare megatron-core for it.

    Args:
        device: `auto` takes CUDA when there is a GPU.
        local_rank: number of this process on its machine; chooses its GPU.

    Raises:
        ValueError: CUDA was asked for and there is none, or fewer GPUs than local processes.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        from megatron_lpc.platform.cpu import redirect_megatron_to_cpu

        redirect_megatron_to_cpu()
        return Platform(torch.device("cpu"), "gloo")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU; use --device cpu, or install a CUDA build of torch")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU: torch sees {torch.cuda.device_count()}; lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return Platform(torch.device("cuda", local_rank), "nccl")
