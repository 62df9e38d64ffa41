"""From the gradient of the logits, chunk by chunk, to those of the hidden states, the LM head and the latents."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.huge_pages import in_huge_pages
from lpc_kernels.pair_logps.problem import Problem


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool
    lm_head_weight: bool
    z: bool

    @property
    def only_z(self) -> bool:
        """Nothing but z has a gradient: that of the logits is summed over tokens and needed no further."""
        return self.z and not (self.hidden or self.lm_head_weight)


class InputGradients(NamedTuple):
    """The gradients of the inputs, None for those not asked for."""

    hidden: Tensor | None
    """[N, H]."""
    lm_head_weight: Tensor | None
    """[V_local, H], fp32 (fp64); the `main_grad` buffer if there is one."""
    z: Tensor | None
    """[L, P, H], fp32 (fp64)."""


class Gradients:
    """Accumulates the gradients of the inputs chunk by chunk.

    Products are in the inputs' dtype, and the LM head's gradient is accumulated in fp32 (fp64).

    Collectives on the tensor parallel group, if there is one: per chunk an all-reduce of the hidden gradient,
    overlapped with the LM head's product; at the end one of the z gradient.
    """

    def __init__(self, problem: Problem, wanted: Wanted) -> None:
        hidden, weight, z = problem.hidden, problem.lm_head_weight, problem.z
        dtype = problem.stats_dtype
        self.problem = problem
        self.wanted = wanted
        self.hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted.hidden else None
        self.weight = problem.main_grad if wanted.lm_head_weight else None
        if wanted.lm_head_weight and self.weight is None:
            self.weight = in_huge_pages(torch.zeros, weight.shape, dtype, weight.device)
        self.bias: Tensor | None = None
        """[L, P, V] gradient of what the latents add to the logits."""
        if z is not None and (wanted.lm_head_weight or wanted.z):
            shape = (*z.shape[:2], problem.shard.vocab_local)
            self.bias = torch.zeros(shape, dtype=dtype, device=z.device)
        self._reductions: list[dist.Work] = []

    def add(self, chunk: slice, d_logits: Tensor) -> None:
        """Add the gradients of a chunk. d_logits: [C, V] gradient of its h W^T."""
        vocab_local = self.problem.shard.vocab_local
        if self.hidden is not None:
            part = self.hidden[chunk]
            if vocab_local:
                torch.mm(d_logits, self.problem.vocab_weight, out=part)
            self._all_reduce(part)
        if self.weight is not None and vocab_local:
            add_product_(self.weight[:vocab_local], d_logits.t(), self.problem.hidden[chunk])

    def finish(self) -> InputGradients:
        """Add the gradients through the latents, and wait for the collectives."""
        d_z = self._finish_latents()
        for reduction in self._reductions:
            reduction.wait()
        return InputGradients(self.hidden, self.weight, d_z)

    def _finish_latents(self) -> Tensor | None:
        z = self.problem.z
        if self.bias is None or z is None:
            return None
        d_z = None
        flat_bias = self.bias.flatten(0, 1)
        if self.wanted.z:
            weight = self.problem.vocab_weight
            d_z = (flat_bias.to(weight.dtype) @ weight).to(flat_bias.dtype)
            if d_z.numel():
                self._all_reduce(d_z)
        if self.weight is not None:
            vocab_local = self.problem.shard.vocab_local
            self.weight[:vocab_local].addmm_(flat_bias.t(), z.flatten(0, 1).to(flat_bias.dtype))
        return None if d_z is None else d_z.view(z.shape)

    def _all_reduce(self, values: Tensor) -> None:
        group = self.problem.shard.group
        if group is not None:
            self._reductions.append(dist.all_reduce(values, group=group, async_op=True))


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, for a total of fp32 and factors of any dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        # One GEMM that keeps its fp32 accumulator; PyTorch has it on GPUs only.
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(left @ right)


def as_gradient(value: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """What autograd gets for an input: its gradient in the dtype of the input."""
    if value is None or gradient is None:
        return None
    return gradient.to(value.dtype)


def gradient_beside_main_grad(weight: Tensor, main_grad_only: bool) -> Tensor:
    """What autograd gets for the LM head where its gradient was added to `main_grad`: zeros that take no memory.

    Autograd copies them where it accumulates them, a pass over [V_local, H]. With `main_grad_only` it gets memory
    without values instead, which it takes as it is.
    """
    if main_grad_only:
        return torch.empty_like(weight, memory_format=torch.contiguous_format)
    return weight.new_zeros(()).expand_as(weight)
