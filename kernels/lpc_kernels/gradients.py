"""From the gradients of a few logits at a time to those of the hidden states, the LM head and the latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.head import Head
from lpc_kernels.large import large


@dataclass(frozen=True)
class Wanted:
    """Which gradients are asked for, and where that of the head goes."""

    hidden: bool
    weight: bool
    z: bool
    weight_grad: Tensor | None = None
    """[V_local, H] fp32 (fp64) buffer that the head's gradient is added to; None: a new one."""


class Gradients:
    """Collects chunk by chunk. Products in the inputs' dtype, the head's gradient summed in fp32 (fp64).

    Collectives, where the words are spread over ranks: per chunk an all-reduce of the hidden gradient, hidden beneath the head's
    product; at the end one of the z gradient.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, z: Tensor | None, head: Head, wanted: Wanted) -> None:
        self.words, self.z, self.head, self.wanted, self.inputs = weight[: head.columns], z, head, wanted, hidden
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted.hidden else None
        self.weight = wanted.weight_grad
        if wanted.weight and self.weight is None:
            self.weight = large(torch.zeros, weight.shape, dtype, weight.device)
        self.bias: Tensor | None = None
        if z is not None and (wanted.weight or wanted.z):
            self.bias = torch.zeros((*z.shape[:2], head.columns), dtype=dtype, device=z.device)
        self._reductions: list[dist.Work] = []

    def add(self, chunk: slice, d_logits: Tensor) -> None:
        """d_logits: [C, V] gradient of the logits of rows `chunk` by h W^T."""
        if self.hidden is not None:
            part = self.hidden[chunk]
            if self.head.columns:
                torch.mm(d_logits, self.words, out=part)
            if self.head.group is not None:
                self._reductions.append(dist.all_reduce(part, group=self.head.group, async_op=True))
        if self.weight is not None and self.head.columns:
            add_product_(self.weight[: self.head.columns], d_logits.t(), self.inputs[chunk])

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden [N, H], of the head [V_local, H] (fp32, or the given buffer) and of z [L, P, H], each if asked for."""
        d_z = None
        if self.bias is not None and self.z is not None:
            flat = self.bias.flatten(0, 1)
            if self.wanted.z:
                d_z = (flat.to(self.words.dtype) @ self.words).to(flat.dtype)
                if self.head.group is not None and d_z.numel():
                    self._reductions.append(dist.all_reduce(d_z, group=self.head.group, async_op=True))
            if self.weight is not None:
                self.weight[: self.head.columns].addmm_(flat.t(), self.z.flatten(0, 1).to(flat.dtype))
        for reduction in self._reductions:
            reduction.wait()
        return self.hidden, self.weight, None if d_z is None or self.z is None else d_z.view(self.z.shape)


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, for a total of fp32 and factors of any dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        # One GEMM that keeps its fp32 accumulator; PyTorch has it on GPUs only.
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(left @ right)
