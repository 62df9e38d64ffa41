"""RMSNorm that works under sequence parallelism."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight is marked `sequence_parallel`.

    The mark makes megatron-core's `finalize_model_grads` all-reduce the weight's gradient over the tensor parallel group, which is
    what a weight needs that each rank applies to its own shard of the sequence. megatron-core's own torch norm refuses that case.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
