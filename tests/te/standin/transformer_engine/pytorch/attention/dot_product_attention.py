"""Attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transformer_engine.checked import checked
from transformer_engine.pytorch.module.base import TransformerEngineBaseModule
from transformer_engine.pytorch.quantization import dist_group_type


class DotProductAttention(TransformerEngineBaseModule):
    @checked
    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable | None = None,
        tp_group: dist_group_type | None = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: dist_group_type | list[dist_group_type] | None = None,
        cp_global_ranks: list[int] = None,
        cp_stream: torch.cuda.Stream = None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
        softmax_type: str = "vanilla",
        return_max_logit: bool | None = False,
    ) -> None:
        super().__init__()
        assert (attention_type, softmax_type, cp_group, attention_dropout) == ("self", "vanilla", None, 0.0)
        ranks = tp_size if tp_group is None else tp_group.size()
        self.heads, self.channels = num_attention_heads // ranks, kv_channels
        self.groups = (num_gqa_groups or num_attention_heads) // ranks
        self.qkv_format, self.attn_mask_type, self.window_size = qkv_format, attn_mask_type, window_size
        self.softmax_scale = softmax_scale

    @checked
    def forward(
        self,
        query_layer: Tensor,
        key_layer: Tensor,
        value_layer: Tensor,
        attention_mask: Tensor | tuple[Tensor, Tensor] = None,
        qkv_format: str = None,
        cu_seqlens_q: Tensor = None,
        cu_seqlens_kv: Tensor = None,
        cu_seqlens_q_padded: Tensor = None,
        cu_seqlens_kv_padded: Tensor = None,
        max_seqlen_q: int = None,
        max_seqlen_kv: int = None,
        attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None,
        checkpoint_core_attention: bool = False,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        fast_zero_fill: bool = True,
        inference_params: Any | None = None,
        pad_between_seqs: bool | None = None,
        fp8_output: bool | None = False,
        num_splits: int | None = 1,
    ) -> Tensor:
        self.prepare_forward(query_layer, query_layer.dtype)
        assert attention_mask is core_attention_bias is cu_seqlens_q_padded is cu_seqlens_kv_padded is None
        assert query_layer.shape[-2:] == (self.heads, self.channels)
        assert key_layer.shape[-2:] == value_layer.shape[-2:] == (self.groups, self.channels)
        projections = (query_layer, key_layer, value_layer)
        mask_type = attn_mask_type or self.attn_mask_type
        if (qkv_format or self.qkv_format) == "sbhd":
            assert mask_type == "causal"
            assert query_layer.dim() == 4
            return self._attend(*(x.permute(1, 2, 0, 3) for x in projections)).permute(2, 0, 1, 3).flatten(2)
        assert mask_type == "padding_causal", "packed sequences are refused with any other mask"
        lengths = _lengths(query_layer, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv)
        documents = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in projections), strict=True)
        return torch.cat([self._attend(*document)[0].transpose(0, 1).flatten(1) for document in documents])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[b, h, s, d] each; causal, within the window."""
        index = torch.arange(query.size(2))
        distance = index[:, None] - index
        left = query.size(2) if self.window_size is None else self.window_size[0]
        assert self.window_size is None or self.window_size[1] == 0
        mask = (distance >= 0) & (distance <= left)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=self.softmax_scale, enable_gqa=self.heads != self.groups
        )


def _lengths(query: Tensor, cu_seqlens_q: Tensor, cu_seqlens_kv: Tensor, max_q: int, max_kv: int) -> list[int]:
    """Of the packed documents; without the longest one the real module would ask the device for it."""
    assert query.dim() == 3
    assert max_q is not None
    assert max_kv is not None
    for cu_seqlens, longest in ((cu_seqlens_q, max_q), (cu_seqlens_kv, max_kv)):
        assert cu_seqlens.dtype == torch.int32
        assert cu_seqlens.dim() == 1
        assert cu_seqlens[0] == 0 and cu_seqlens[-1] == query.size(0), "tokens after the last would be left unset"
        assert cu_seqlens.diff().max() <= longest
    return cu_seqlens_q.diff().tolist()
