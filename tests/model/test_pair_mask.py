"""Attention where rows hold several sequences, against its definition and against rows of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention.flex_attention import flex_attention

from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.model.attention import FlashAttention
from megatron_lpc.model.pair_mask import MaskCache, block_mask, packed_sequences, spans, visible

lengths = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
ROWS = [{"share_prompt": True}, {"pack_to": 80}, {"share_prompt": True, "pack_to": 80}]


def layout_of(sizes, rows):
    pairs = [EncodedPair([1] * x, [2] * w, [3] * y) for x, w, y in sizes]
    return collate(pairs, range(len(pairs)), range(len(pairs)), pad_id=0, **rows).packing_layout.stacked


def attention(window=None, heads=4, groups=2, width=8):
    config = TransformerConfig(
        num_layers=1,
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=width,
        window_size=None if window is None else (window - 1, 0),
        attention_dropout=0.0,
    )
    return FlashAttention(config, 1, AttnMaskType.causal, "self")


def projections(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    _, rows, length = layout.shape
    shapes = ((length, rows, 4, 8), (length, rows, 2, 8), (length, rows, 2, 8))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@given(lengths, st.sampled_from(ROWS), st.sampled_from([None, 1, 3]))
def test_who_is_visible(sizes, rows, window):
    layout = layout_of(sizes, rows)
    seen = visible(*layout, window=window)
    for row in range(layout.size(1)):
        documents, positions = layout[:, row].tolist()
        for query, (mine, here) in enumerate(zip(documents, positions, strict=True)):
            for key, (theirs, there) in enumerate(zip(documents, positions, strict=True)):
                same = mine == theirs or (mine // 3 == theirs // 3 and theirs % 3 == 0)
                near = window is None or here - there < window
                assert seen[row, query, key] == (key <= query and same and near)


@given(lengths, st.sampled_from(ROWS), st.sampled_from([None, 1, 3]))
def test_spans_hold_all_that_is_visible(sizes, rows, window):
    layout = layout_of(sizes, rows)
    rebuilt = torch.zeros_like(visible(*layout))
    for span in spans(layout, window):
        size = span.stop - span.start
        mask = span.mask if span.mask is not None else torch.ones(size, size, dtype=torch.bool).tril()
        rebuilt[span.row, span.start : span.stop, span.start : span.stop] = mask
    real = layout[0] >= 0
    assert torch.equal(rebuilt, visible(*layout, window=window) & real[:, :, None])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("rows", ROWS)
def test_attention_is_softmax_over_the_visible(rows, window):
    layout = layout_of([(3, 4, 2), (1, 5, 6), (6, 1, 1)], rows)
    query, key, value = projections(layout)
    context = attention(window)(query, key, value, layout)
    scores = torch.einsum("qrhd,krhd->rhqk", query, key.repeat_interleave(2, 2)) / 8**0.5
    weights = scores.masked_fill(~visible(*layout, window=window)[:, None], -torch.inf).softmax(-1)
    expected = torch.einsum("rhqk,krhd->qrhd", weights, value.repeat_interleave(2, 2)).flatten(2)
    real = (layout[0] >= 0).T
    torch.testing.assert_close(context[real], expected[real], rtol=1e-5, atol=1e-6)
    assert not context[~real].any()
    upstream = torch.randn_like(context) * real[..., None]
    ours = torch.autograd.grad(context, (query, key, value), upstream)
    theirs = torch.autograd.grad(expected, (query, key, value), upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("rows", ROWS)
def test_the_block_mask_of_a_gpu_says_the_same(rows, window):
    layout = layout_of([(3, 4, 2), (1, 5, 6), (6, 1, 1)], rows)
    query, key, value = (x.detach().permute(1, 2, 0, 3) for x in projections(layout))
    context = flex_attention(query, key, value, block_mask=block_mask(layout, window), enable_gqa=True)
    expected = attention(window)(*(x.permute(2, 0, 1, 3) for x in (query, key, value)), layout)
    real = (layout[0] >= 0).T
    torch.testing.assert_close(context.permute(2, 0, 1, 3).flatten(2)[real], expected[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [{"share_prompt": True}, {"share_prompt": True, "pack_to": 80}])
def test_a_response_knows_nothing_of_the_other_to_the_last_bit(rows):
    layout = layout_of([(3, 4, 2), (2, 5, 6)], rows)
    query, key, value = (x.detach() for x in projections(layout))
    before = attention()(query, key, value, layout)
    chosen, other = (layout[0] % 3 == 1).T & (layout[0] >= 0).T, (layout[0] % 3 != 1).T
    changed = [torch.where(chosen[..., None, None], x + 1, x) for x in (query, key, value)]
    after = attention()(*changed, layout)
    assert torch.equal(before[other], after[other])
    assert not torch.equal(before[chosen], after[chosen])


def test_masks_are_made_once_a_layout():
    made = []
    cache = MaskCache(lambda layout: made.append(layout) or len(made))
    one, two = layout_of([(1, 2, 3)], ROWS[0]), layout_of([(2, 2, 2)], ROWS[0])
    assert [cache(one), cache(two), cache(one.detach()), cache(one)] == [1, 2, 1, 1]
    for _ in range(40):
        cache(layout_of([(1, 1, 1)], ROWS[0]))
    cache(one)
    assert len(made) > 40, "old ones are forgotten, and with them the memory"
    assert len(cache._made) <= 16


def test_what_transformer_engine_is_told():
    params = packed_sequences(layout_of([(3, 4, 2), (1, 5, 6)], {"pack_to": 40}))
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, 7, 12, 18, 25, 40]
    assert params.cu_seqlens_q.dtype == torch.int32
    assert params.max_seqlen_q == 40
    for rows in ({"share_prompt": True}, {"share_prompt": True, "pack_to": 40}):
        with pytest.raises(ValueError, match="sequences that share no prompt"):
            packed_sequences(layout_of([(3, 4, 2), (1, 5, 6)], rows))
