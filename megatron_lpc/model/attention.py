"""Attention core of the portable layers: torch's fused scaled dot product, which never holds the S x S scores."""

from __future__ import annotations

import contextlib
import functools

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class FlashAttention(MegatronModule):
    """Causal, sliding-window or explicitly masked attention with grouped queries, in the place of megatron-core's `DotProductAttention`.

    Attention is within one rank's heads: no collective runs here. The window is `config.window_size = (w - 1, 0)`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or attention_type != "self":
            raise ValueError(f"FlashAttention is causal self-attention; asked for {attn_mask_type} {attention_type}")
        if config.context_parallel_size != 1:
            raise ValueError("context parallelism needs --transformer-impl transformer_engine")
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.window = None if config.window_size is None else config.window_size[0] + 1

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, R, heads of this rank, D].
            key, value: [S, R, query groups of this rank, D].
            attention_mask: [R or 1, 1, S, S] bool, True where a query may attend; None for causal (and window) attention.
            attn_mask_type, attention_bias, packed_seq_params: part of megatron-core's interface; must be unset or causal.

        Returns:
            [S, R, heads of this rank * D] in query's dtype.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("FlashAttention takes no attention bias and no packed sequence parameters; give it an attention mask")
        if attention_mask is None and self.window is not None and query.size(0) > self.window:
            attention_mask = _window_mask(query.size(0), self.window, query.device)
        # Under sequence parallelism the ranks' heads differ but their default generators do not: drop from the model-parallel stream.
        dropout = self.dropout if self.training else 0.0
        with get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext():
            context = scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=attention_mask,
                is_causal=attention_mask is None,
                dropout_p=dropout,
                scale=self.softmax_scale,
                enable_gqa=query.size(2) != key.size(2),
            )
        return context.permute(2, 0, 1, 3).flatten(2)


@functools.lru_cache(maxsize=8)
def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """[1, 1, S, S] bool: token t attends to t - window + 1 … t."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return ((distance >= 0) & (distance < window))[None, None]
