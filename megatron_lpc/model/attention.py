"""Attention core of the portable layers: torch's fused attention, which never holds the S x S scores.

One document per sequence: `scaled_dot_product_attention`. Sliding windows, packed sequences, shared prompts and soft
caps: FlexAttention with a block mask on a GPU; on a CPU, where FlexAttention has no backward pass,
`scaled_dot_product_attention` block by block, or plain products where scores have a soft cap. On a GPU both torch
functions may fall back to computing all scores without a word; here that is an error.

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
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.model.capped_attention import capped_attention
from megatron_lpc.model.flex_attention import FlexBackend, attend_by_flex, query_block
from megatron_lpc.model.flex_mask import flex_block_mask, sliding_window_block_mask
from megatron_lpc.model.mask_cache import MaskCache
from megatron_lpc.model.packing_masks import QUERY_BLOCK, attention_blocks

FUSED_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
"""Every CUDA kernel of `scaled_dot_product_attention` but the one that holds the S x S scores."""


class FlashAttention(MegatronModule):
    """Causal, sliding-window or packed attention with grouped queries, in the place of core's `DotProductAttention`.

    Attention is within one rank's heads: no collective runs here. A window of w tokens is `config.window_size = (w -
    1, 0)`; `config.window_attn_skip_freq` says which layers have it. A soft cap c tanh(x / c) on the scores is
    `config.attn_logit_softcapping`, where it is a `BackboneConfig`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        flex_backend: FlexBackend = "auto",
    ) -> None:
        """Called by megatron-core's `SelfAttention`, with its arguments, and with `flex_attention_backend`.

        Raises:
            ValueError: another kind of attention, context parallelism, or dropout with a soft cap is requested.
            ConfigError: the backend is `flash`, and FlashAttention-4 does not run here.
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
        self.dropout = config.attention_dropout
        self.softmax_scale = softmax_scale
        self.softcap: float | None = getattr(config, "attn_logit_softcapping", None)
        if self.dropout and self.softcap is not None:
            raise ValueError(f"FlashAttention with a soft cap has no dropout; attention_dropout is {self.dropout}")
        has_window = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size[0] + 1 if has_window else None
        self.flex_backend = flex_backend
        self.query_block = query_block(flex_backend, config.kv_channels)
        self.attention_blocks = _mask_cache(attention_blocks, window=self.window)
        self.flex_block_mask = _mask_cache(flex_block_mask, window=self.window, query_block=self.query_block)

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
        layout = None if attention_mask is None else PackingLayout(attention_mask)
        is_causal = layout is None and (self.window is None or query.size(2) <= self.window)
        if query.is_cuda and not self._dropout and (self.softcap is not None or not is_causal):
            context = self._attend_by_flex(query, key, value, layout)
        elif is_causal:
            context = self._attend(query, key, value, None)
        elif layout is None:
            context = self._attend_in_window(query, key, value)
        else:
            context = self._attend_packed(query, key, value, layout)
        return context.permute(2, 0, 1, 3).flatten(2)

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[R, h, Sq, D] of queries [R, h, Sq, D], keys and values [R, g, Sk, D]; causal without a mask [Sq, Sk]."""
        if self.softcap is not None:
            return capped_attention(query, key, value, mask, self.softmax_scale, self.softcap)
        if query.is_cuda and not _takes_groups(query, mask):
            repeats = query.size(1) // key.size(1)
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        kernels = sdpa_kernel(FUSED_KERNELS) if query.is_cuda else contextlib.nullcontext()
        # Under sequence parallelism ranks have different heads but equal default generators.
        # Only the tracker's model parallel generator differs by rank.
        generator = get_cuda_rng_tracker().fork() if self._dropout else contextlib.nullcontext()
        with kernels, generator:
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=self._dropout,
                scale=self.softmax_scale,
                enable_gqa=query.size(1) != key.size(1),
            )

    def _attend_by_flex(self, query: Tensor, key: Tensor, value: Tensor, layout: PackingLayout | None) -> Tensor:
        """As `_attend`, by FlexAttention; without a layout, of one document per sequence."""
        if layout is None:
            sequences, _, length, _ = query.shape
            block_mask = sliding_window_block_mask(sequences, length, self.window, query.device, self.query_block)
        else:
            block_mask = self.flex_block_mask(layout)
        return attend_by_flex(
            query,
            key,
            value,
            block_mask=block_mask,
            scale=self.softmax_scale,
            softcap=self.softcap,
            backend=self.flex_backend,
        )

    def _attend_in_window(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `_attend` in a window, block by block: no mask is larger than `QUERY_BLOCK` times as many and a window."""
        assert self.window is not None
        length = query.size(2)
        contexts = []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            key_start = max(0, start - self.window + 1)
            mask = _window_mask(stop - start, stop - key_start, self.window, query.device)
            keys = slice(key_start, stop)
            contexts.append(self._attend(query[:, :, start:stop], key[:, :, keys], value[:, :, keys], mask))
        return torch.cat(contexts, dim=2)

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, layout: PackingLayout) -> Tensor:
        """As `_attend`, block by block: the work is that of the documents, whatever the length of the packed sequence.

        Padding gives 0.
        """
        contexts: list[list[Tensor]] = [[] for _ in range(query.size(0))]
        for block in self.attention_blocks(layout):
            here = (slice(block.sequence, block.sequence + 1), slice(None))
            queries, keys = (*here, slice(block.start, block.stop)), (*here, slice(block.key_start, block.stop))
            contexts[block.sequence].append(self._attend(query[queries], key[keys], value[keys], block.mask))
        _, heads, length, channels = query.shape
        whole = []
        for blocks in contexts:
            padding = length - sum(block.size(2) for block in blocks)
            blocks.append(query.new_zeros(1, heads, padding, channels))
            whole.append(torch.cat(blocks, dim=2))
        return torch.cat(whole)


def _takes_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Whether a fused CUDA kernel takes fewer key and value heads than query heads.

    Only FlashAttention is sure to, in half precision, without a mask, for heads of up to 256 channels. The
    memory-efficient kernel, which takes everything else, does not (torch's sdp_utils.cpp).
    """
    return mask is None and query.dtype in (torch.bfloat16, torch.float16) and query.size(-1) <= 256


@functools.cache
def _mask_cache(make: Callable[..., Any], **options: int | None) -> MaskCache[Any]:
    """One cache for all layers, which see the same packing layouts."""
    return MaskCache(functools.partial(make, **options))


@functools.lru_cache(maxsize=8)
def _window_mask(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """[queries, keys] bool of the last queries among some keys: token t attends to t - window + 1 … t."""
    keys = torch.arange(num_keys, device=device)
    distance = keys[num_keys - num_queries :, None] - keys
    return (distance >= 0) & (distance < window)
