"""Attention core of the portable layers: torch's fused attention, which never holds the S x S scores.

One document per sequence: `scaled_dot_product_attention`. Packed sequences and shared prompts: FlexAttention with a
block mask on a GPU; on a CPU, where FlexAttention has no backward pass, `scaled_dot_product_attention` block by
block.

Shape legend: R sequences of S tokens, h heads of this rank, g query groups of this rank, D channels per head.
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

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.model.mask_cache import MaskCache
from megatron_lpc.model.packing_masks import attention_blocks, flex_block_mask


class FlashAttention(MegatronModule):
    """Causal, sliding-window or packed attention with grouped queries, in the place of core's `DotProductAttention`.

    Attention is within one rank's heads: no collective runs here. A window of w tokens is `config.window_size = (w -
    1, 0)`.
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
        """Called by megatron-core's `SelfAttention`, with its arguments.

        Raises:
            ValueError: another kind of attention, or context parallelism, is requested.
        """
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or attention_type != "self":
            raise ValueError(
                f"FlashAttention is causal self-attention; it was asked for {attn_mask_type} {attention_type}"
            )
        if config.context_parallel_size != 1:
            raise ValueError(
                f"FlashAttention has no context parallelism; context_parallel_size is {config.context_parallel_size} "
                "and must be 1"
            )
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.window = None if config.window_size is None else config.window_size[0] + 1
        self.attention_blocks = _mask_cache(attention_blocks, self.window)
        self.flex_block_mask = _mask_cache(flex_block_mask, self.window)

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
            query: [S, R, h, D].
            key, value: [S, R, g, D].
            attention_mask: [2, R, S] int64, `PackingLayout.stacked`; None for one document per sequence.
            attn_mask_type: not read; part of megatron-core's interface.
            attention_bias, packed_seq_params: part of megatron-core's interface; must be None.

        Returns:
            [S, R, h * D] in the dtype of `query`.

        Raises:
            ValueError: a bias or packed sequence parameters are given.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError(
                "FlashAttention takes no attention bias and no packed sequence parameters; give it a packing layout"
            )
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if attention_mask is None:
            context = self._attend(query, key, value, self._sliding_window_mask(query))
        elif query.is_cuda:
            context = self._attend_packed_on_gpu(query, key, value, PackingLayout(attention_mask))
        else:
            context = self._attend_packed_on_cpu(query, key, value, PackingLayout(attention_mask))
        return context.permute(2, 0, 1, 3).flatten(2)

    def _sliding_window_mask(self, query: Tensor) -> Tensor | None:
        """[1, 1, S, S] bool; None where causal attention is the same."""
        length = query.size(2)
        if self.window is None or length <= self.window:
            return None
        return _window_mask(length, self.window, query.device)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[R, h, S, D] of queries [R, h, S, D], keys and values [R, g, S, D]; causal without a mask."""
        dropout = self.dropout if self.training else 0.0
        # Under sequence parallelism ranks have different heads but equal default generators.
        # Only the tracker's model parallel generator differs by rank.
        generator = get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with generator:
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

    def _attend_packed_on_gpu(self, query: Tensor, key: Tensor, value: Tensor, layout: PackingLayout) -> Tensor:
        """As `_attend`, by FlexAttention."""
        return _compiled_flex_attention()(
            query,
            key,
            value,
            block_mask=self.flex_block_mask(layout),
            scale=self.softmax_scale,
            enable_gqa=query.size(1) != key.size(1),
        )

    def _attend_packed_on_cpu(self, query: Tensor, key: Tensor, value: Tensor, layout: PackingLayout) -> Tensor:
        """As `_attend`, block by block: the work is that of the documents, whatever the length of the packed sequence.

        Padding gives 0.
        """
        contexts: list[list[Tensor]] = [[] for _ in range(query.size(0))]
        for block in self.attention_blocks(layout):
            here = (slice(block.sequence, block.sequence + 1), slice(None), slice(block.start, block.stop))
            contexts[block.sequence].append(self._attend(query[here], key[here], value[here], block.mask))
        _, heads, length, channels = query.shape
        whole = []
        for blocks in contexts:
            padding = length - sum(block.size(2) for block in blocks)
            blocks.append(query.new_zeros(1, heads, padding, channels))
            whole.append(torch.cat(blocks, dim=2))
        return torch.cat(whole)


@functools.cache
def _mask_cache(make: Callable[..., Any], window: int | None) -> MaskCache[Any]:
    """One cache for all layers, which see the same packing layouts."""
    return MaskCache(functools.partial(make, window=window))


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Uncompiled it would hold the S x S scores.
    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=8)
def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """[1, 1, S, S] bool: token t attends to t - window + 1 … t."""
    index = torch.arange(length, device=device)
    distance = index[:, None] - index[None, :]
    return ((distance >= 0) & (distance < window))[None, None]
