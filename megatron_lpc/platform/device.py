"""The device of a process and the backend of its collectives."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

_BLACKWELL = 10
"""Its major compute capability."""


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

    @property
    def starts_kernels_in_order(self) -> bool:
        """Whether kernels start in the order in which they were enqueued.

        megatron-core's tensor parallel layers rely on it to overlap collectives with computation on GPUs before
        Blackwell. As in Megatron-LM the environment must say so when the process starts.
        """
        if not self.is_cuda or os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1":
            return True
        return torch.cuda.get_device_capability(self.device)[0] >= _BLACKWELL

    @property
    def sequence_multiple(self) -> int:
        """Padded sequences are a multiple of so many tokens, where the options do not say: a GPU plans and compiles for
        each length that it meets, and blocks of 128 are those of FlexAttention.
        """
        return 128 if self.is_cuda else 1

    def synchronize(self) -> None:
        """Wait until the device has done all work given to it."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def start_copy_to_host(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to copy a tensor of the device to the host; the host goes on.

        Returns:
            A function that waits until the copy is done, and gives it. It does not wait where the host has waited for
            later work already.
        """
        if not self.is_cuda:
            return lambda: tensor
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copy.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> Tensor:
            copied.synchronize()
            return copy

        return wait

    def generator_state(self) -> Tensor:
        """State of the device's default generator: uint8, on the host. On a CPU that is torch's own generator."""
        return torch.cuda.get_rng_state(self.device) if self.is_cuda else torch.get_rng_state()

    def set_generator_state(self, state: Tensor) -> None:
        """Set what `generator_state` gave."""
        if self.is_cuda:
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)

    def transformer_options(self) -> dict[str, Any]:
        """Fields of megatron-core's `TransformerConfig` that depend on the device."""
        if self.is_cuda:
            # core would wait for the device at every exchange, for a fault of `batch_isend_irecv` that torch 1.13 fixed
            # (pytorch/pytorch#82450).
            return {"batch_p2p_comm": True, "batch_p2p_sync": False}
        return {"use_cpu_initialization": True, "batch_p2p_comm": False}


def select_platform(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> Platform:
    """Choose the platform of this process and prepare megatron-core for it.

    Args:
        device: `auto` takes CUDA when there is a GPU.
        local_rank: number of this process on its machine; chooses its GPU.

    Raises:
        ValueError: CUDA was asked for and there is none, or there are fewer GPUs than local processes.
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
