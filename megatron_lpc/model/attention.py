"""Attention core of the portable layers: torch's fused scaled dot product, which never holds the S x S scores.

Where rows hold several sequences, FlexAttention with a block mask on a GPU; on a CPU, where it has no backward pass, span by span.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from megatron_lpc.model.pair_mask import MaskCache, block_mask, spans


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
        self.spans = _masks(spans, self.window)
        self.block_mask = _masks(block_mask, self.window)

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
            attention_mask: `PackingLayout.stacked` [2, R, S] where rows hold several sequences; None for causal (and window) attention.
            attn_mask_type, attention_bias, packed_seq_params: part of megatron-core's interface; must be unset or causal.

        Returns:
            [S, R, heads of this rank * D] in query's dtype.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError(
                "FlashAttention takes no attention bias and no packed sequence parameters; give it a pair layout"
            )
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if attention_mask is None:
            window = self.window if self.window is not None and query.size(2) > self.window else None
            context = self._attend(
                query, key, value, None if window is None else _window_mask(query.size(2), window, query.device)
            )
        elif query.is_cuda:
            grouped = query.size(1) != key.size(1)
            mask = self.block_mask(attention_mask)
            context = _compiled_flex_attention()(
                query, key, value, block_mask=mask, scale=self.softmax_scale, enable_gqa=grouped
            )
        else:
            context = self._attend_by_span(query, key, value, attention_mask)
        return context.permute(2, 0, 1, 3).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # Under sequence parallelism the ranks' heads differ but their default generators do not: drop from the model-parallel stream.
        dropout = self.dropout if self.training else 0.0
        with get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext():
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=self.softmax_scale,
                enable_gqa=query.size(1) != key.size(1),
            )

    def _attend_by_span(self, query: Tensor, key: Tensor, value: Tensor, layout: Tensor) -> Tensor:
        """The work is that of the sequences, however long the rows that they share."""
        rows: list[list[Tensor]] = [[] for _ in range(query.size(0))]
        for span in self.spans(layout):
            here = (slice(span.row, span.row + 1), slice(None), slice(span.start, span.stop))
            rows[span.row].append(self._attend(query[here], key[here], value[here], span.mask))
        missing = [query.size(2) - sum(part.size(2) for part in row) for row in rows]
        padding = [query.new_zeros(1, query.size(1), length, query.size(3)) for length in missing]
        return torch.cat([torch.cat([*row, end], dim=2) for row, end in zip(rows, padding, strict=True)])


@functools.cache
def _masks(make: Callable[..., Any], window: int | None) -> MaskCache:
    """One for all layers, which see the same layouts."""
    return MaskCache(functools.partial(make, window=window))


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Uncompiled it would hold the S x S scores.
    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=8)
def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """[1, 1, S, S] bool: token t attends to t - window + 1 … t."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return ((distance >= 0) & (distance < window))[None, None]
