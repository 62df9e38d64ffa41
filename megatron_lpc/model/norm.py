"""RMSNorm that works under sequence parallelism."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight is marked `sequence_parallel`.

    Under sequence parallelism each tensor parallel rank applies the weight to its own shard of the sequence, so the
    weight's gradient must be summed over the ranks. The mark makes megatron-core's `finalize_model_grads` all-reduce it
    over the tensor parallel group. megatron-core's own wrapper of torch's norm refuses sequence parallelism.

    Under `layernorm_zero_centered_gamma`, y = normed(x) * (1 + w), in fp32 as Gemma does it: in bf16, 1 + w would lose
    most of w.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        self.zero_centered = config.layernorm_zero_centered_gamma
        if self.zero_centered:
            torch.nn.init.zeros_(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of x, in x's dtype."""
        if not self.zero_centered:
            return super().forward(x)
        return rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).type_as(x)
