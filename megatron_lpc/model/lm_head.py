"""The LM head, whose weight `pair_logps` multiplies with, and the buffer of its gradient."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor


class LMHead(ColumnParallelLinear):
    """The LM head, whose call returns its weight, for `pair_logps` multiplies with it.

    Called like any module, because megatron-core waits for an overlapped parameter gather in forward pre-hooks.
    """

    def forward(self) -> Tensor:
        """[V / tp, H] weight, vocabulary padding included."""
        return self.weight


def main_grad_of(weight: Tensor) -> Tensor | None:
    """megatron-core's fp32 gradient buffer of a weight, where there is one and a gradient is computed.

    `pair_logps` adds to it. `grad_added_to_main_grad` tells core's data parallel wrapper not to add what autograd
    returns, as core's own fused linear layer does; so it may be memory without values. Where the weight is also the
    embedding of this stage, core has set `zero_out_wgrad`, and the wrapper adds nevertheless: the embedding's gradient
    plus what we return, which must be zeros.
    """
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    if main_grad is None or not (weight.requires_grad and torch.is_grad_enabled()):
        return None
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return main_grad
