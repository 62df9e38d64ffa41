"""The largest tensor of attention over 8192 tokens on a CPU, forward and backward: no S x S scores or mask."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.model.attention import FlashAttention
from megatron_lpc.model.packing_masks import QUERY_BLOCK

LENGTH, HEADS, GROUPS, CHANNELS = 8192, 2, 1, 16
PAIR = EncodedPair([1] * 500, [2] * 900, [3] * 600)
TOKENS_OF_PAIR = 500 + 900 + 600
WINDOW = 700
PACKINGS = {"separate": {}, "packed": {"pack_to": LENGTH}, "shared": {"pack_to": LENGTH, "share_prompt": True}}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator reads or returns; fused kernels are one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operator = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.elements:
                self.elements, self.operator = tensor.numel(), str(func)
        return result


def attention(window: int | None) -> FlashAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * CHANNELS,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        window_size=None if window is None else (window - 1, 0),
        attention_dropout=0.0,
    )
    return FlashAttention(config, 1, AttnMaskType.causal, "self")


def packing_layout(packing: str) -> torch.Tensor | None:
    if packing == "separate":
        return None
    pairs = [PAIR] * (2 if packing == "packed" else 4)
    batch = collate(pairs, range(len(pairs)), range(len(pairs)), pad_id=0, **PACKINGS[packing])
    assert batch.tokens.size(1) == LENGTH
    return batch.packing_layout.stacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("packing", PACKINGS)
def test_no_tensor_grows_with_the_square_of_the_length(packing, window, dtype):
    stacked = packing_layout(packing)
    query, key, value = (
        torch.ones(LENGTH, 1, heads, CHANNELS, dtype=dtype, requires_grad=True) for heads in (HEADS, GROUPS, GROUPS)
    )
    with Largest() as largest:
        attention(window)(query, key, value, stacked).sum().backward()
    longest_mask = QUERY_BLOCK * max(QUERY_BLOCK + WINDOW, TOKENS_OF_PAIR)
    assert largest.elements >= query.numel(), "the inputs are seen"
    assert largest.elements <= max(query.numel(), longest_mask) < LENGTH**2 / 100, largest.operator
