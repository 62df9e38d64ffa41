"""Attention over packed sequences and shared prompts, against its definition and against unpacked sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.flex_attention import flex_attention

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.model.attention import FlashAttention
from megatron_lpc.model.flex_mask import flex_block_mask
from megatron_lpc.model.mask_cache import MaskCache
from megatron_lpc.model.packing_masks import attention_blocks, packed_seq_params

from .visible import visible

lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
LONGEST = 4 * (6 + 6 + 6 + 6)
"""Tokens of the largest batch that `lengths` draws, each response with a prompt of its own."""
PACKINGS = [{"share_prompt": True}, {"pack_to": LONGEST}, {"share_prompt": True, "pack_to": LONGEST}]
SIZES = [(3, 4, 2), (1, 5, 6), (6, 1, 1)]


def layout_of(sizes, packing) -> PackingLayout:
    """Packing layout of pairs with these lengths of prompt, chosen and rejected."""
    pairs = [EncodedPair([1] * x, [2] * w, [3] * y) for x, w, y in sizes]
    return collate(pairs, range(len(pairs)), range(len(pairs)), pad_id=0, **packing).packing_layout


def attention(window=None, heads=4, groups=2, channels=8):
    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * channels,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=channels,
        window_size=None if window is None else (window - 1, 0),
        attention_dropout=0.0,
    )
    return FlashAttention(config, 1, AttnMaskType.causal, "self")


def projections(layout, seed=0):
    """Random queries [S, R, 4, 8], keys and values [S, R, 2, 8]."""
    generator = torch.Generator().manual_seed(seed)
    sequences, length = layout.document_ids.shape
    shapes = ((length, sequences, 4, 8), (length, sequences, 2, 8), (length, sequences, 2, 8))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def is_token(layout):
    """[S, R]: False on padding."""
    return (layout.document_ids >= 0).T


@given(lengths, st.sampled_from(PACKINGS), st.sampled_from([None, 1, 3]))
def test_who_is_visible(sizes, packing, window):
    layout = layout_of(sizes, packing)
    seen = visible(*layout.stacked, window=window)
    for sequence in range(len(seen)):
        documents, positions = layout.stacked[:, sequence].tolist()
        for query, (mine, here) in enumerate(zip(documents, positions, strict=True)):
            for key, (theirs, there) in enumerate(zip(documents, positions, strict=True)):
                same = mine == theirs or (mine // 3 == theirs // 3 and theirs % 3 == 0)
                near = window is None or here - there < window
                assert seen[sequence, query, key] == (key <= query and same and near)


@given(lengths, st.sampled_from(PACKINGS), st.sampled_from([None, 1, 3]))
def test_blocks_hold_all_that_is_visible(sizes, packing, window):
    layout = layout_of(sizes, packing)
    rebuilt = torch.zeros_like(visible(*layout.stacked))
    for block in attention_blocks(layout, window):
        size = block.stop - block.start
        mask = block.mask if block.mask is not None else torch.ones(size, size, dtype=torch.bool).tril()
        rebuilt[block.sequence, block.start : block.stop, block.key_start : block.stop] = mask
    real = layout.document_ids >= 0
    assert torch.equal(rebuilt, visible(*layout.stacked, window=window) & real[:, :, None])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("packing", PACKINGS)
def test_attention_is_softmax_over_the_visible(packing, window):
    layout = layout_of(SIZES, packing)
    query, key, value = projections(layout)
    context = attention(window)(query, key, value, layout.stacked)
    scores = torch.einsum("qrhd,krhd->rhqk", query, key.repeat_interleave(2, 2)) / 8**0.5
    weights = scores.masked_fill(~visible(*layout.stacked, window=window)[:, None], -torch.inf).softmax(-1)
    expected = torch.einsum("rhqk,krhd->qrhd", weights, value.repeat_interleave(2, 2)).flatten(2)
    real = is_token(layout)
    torch.testing.assert_close(context[real], expected[real], rtol=1e-5, atol=1e-6)
    assert not context[~real].any()
    upstream = torch.randn_like(context) * real[..., None]
    ours = torch.autograd.grad(context, (query, key, value), upstream)
    theirs = torch.autograd.grad(expected, (query, key, value), upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_block_mask_of_a_gpu_says_the_same(packing, window):
    layout = layout_of(SIZES, packing)
    query, key, value = (x.detach().permute(1, 2, 0, 3) for x in projections(layout))
    context = flex_attention(query, key, value, block_mask=flex_block_mask(layout, window), enable_gqa=True)
    expected = attention(window)(*(x.permute(2, 0, 1, 3) for x in (query, key, value)), layout.stacked)
    real = is_token(layout)
    torch.testing.assert_close(context.permute(2, 0, 1, 3).flatten(2)[real], expected[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packing", [{"share_prompt": True}, {"share_prompt": True, "pack_to": 80}])
def test_a_response_knows_nothing_of_the_other_to_the_last_bit(packing):
    layout = layout_of([(3, 4, 2), (2, 5, 6)], packing)
    query, key, value = (x.detach() for x in projections(layout))
    before = attention()(query, key, value, layout.stacked)
    of_chosen = (layout.document_ids % 3 == 1).T
    chosen, other = of_chosen & is_token(layout), ~of_chosen
    changed = [torch.where(chosen[..., None, None], x + 1, x) for x in (query, key, value)]
    after = attention()(*changed, layout.stacked)
    assert torch.equal(before[other], after[other])
    assert not torch.equal(before[chosen], after[chosen])


def test_masks_are_made_once_per_layout():
    made = []
    cache = MaskCache(lambda layout: made.append(layout) or len(made))
    one, two = layout_of([(1, 2, 3)], PACKINGS[0]), layout_of([(2, 2, 2)], PACKINGS[0])
    alias = PackingLayout(one.stacked.detach())
    assert [cache(one), cache(two), cache(alias), cache(one)] == [1, 2, 1, 1]
    for _ in range(40):
        cache(layout_of([(1, 1, 1)], PACKINGS[0]))
    cache(one)
    assert len(made) > 40, "old ones are forgotten, and their memory is released"
    assert len(cache._masks) <= 16


def test_what_transformer_engine_is_told():
    params = packed_seq_params(layout_of([(3, 4, 2), (1, 5, 6)], {"pack_to": 40}))
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, 7, 12, 18, 25, 40]
    assert params.cu_seqlens_q.dtype == torch.int32
    assert params.max_seqlen_q == params.max_seqlen_kv == 64
    longest = layout_of([(70, 4, 5)], {"pack_to": 320})
    assert longest.max_seqlen == 320 - 2 * 70 - 4 - 5, "padding is attended to as a document"
    assert packed_seq_params(longest).max_seqlen_q == 192
    for packing in ({"share_prompt": True}, {"share_prompt": True, "pack_to": 40}):
        with pytest.raises(ValueError, match="responses share no prompt"):
            packed_seq_params(layout_of([(3, 4, 2), (1, 5, 6)], packing))
