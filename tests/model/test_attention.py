"""Sliding windows, and the branches of a GPU."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from megatron_lpc.data.batch import PackingLayout
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.model import attention as attention_module
from megatron_lpc.model import flex_attention as flex_module
from megatron_lpc.model import packing_masks
from megatron_lpc.model.attention import FlashAttention
from megatron_lpc.model.flex_mask import flex_block_mask, sliding_window_block_mask
from megatron_lpc.model.transformer_config import BackboneConfig

from .visible import visible

SIZES = [(70, 200, 150), (130, 20, 260)]
PACKINGS = {
    "shared": {"share_prompt": True},
    "packed": {"pack_to": 1200},
    "packed-shared": {"share_prompt": True, "pack_to": 900},
}


def layout_of(packing: str) -> PackingLayout:
    pairs = [EncodedPair([1] * x, [2] * w, [3] * y) for x, w, y in SIZES]
    return collate(pairs, range(len(pairs)), range(len(pairs)), pad_id=0, **PACKINGS[packing]).packing_layout


def one_document(length: int) -> PackingLayout:
    """The layout of two sequences that need none."""
    position_ids = torch.arange(length).expand(2, length)
    return PackingLayout(torch.stack((torch.ones_like(position_ids), position_ids)))


def flash_attention(window=None, dropout=0.0, backend="auto", softcap=None) -> FlashAttention:
    config = BackboneConfig(
        num_layers=1,
        hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        window_size=None if window is None else (window - 1, 0),
        attention_dropout=dropout,
        attn_logit_softcapping=softcap,
    )
    return FlashAttention(config, 1, AttnMaskType.causal, "self", flex_backend=backend)


def projections(sequences, length, dtype=torch.float32, requires_grad=False):
    """Random queries [S, R, 4, 16], keys and values [S, R, 2, 16]."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(length, sequences, heads, 16, generator=generator).to(dtype) for heads in (4, 2, 2)]
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def by_definition(query, key, value, seen, softcap=None):
    """Softmax over the visible keys, whose mask is [R, S, S]."""
    key, value = (x.repeat_interleave(2, 2) for x in (key, value))
    scores = torch.einsum("qrhd,krhd->rhqk", query, key) / query.size(-1) ** 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("rhqk,krhd->qrhd", weights, value).flatten(2)


class CudaStandIn(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_subclass(CudaStandIn)


@pytest.fixture
def calls(monkeypatch):
    """Calls of `scaled_dot_product_attention`: its tensors and options, and the kernels that it may use."""
    made = []
    real = attention_module.scaled_dot_product_attention

    def recorder(query, key, value, **options):
        made.append({"query": query, "key": key, "kernels": set(_cur_sdpa_kernel_backends()), **options})
        return real(query, key, value, **options)

    monkeypatch.setattr(attention_module, "scaled_dot_product_attention", recorder)
    return made


@pytest.fixture
def eager_flex(monkeypatch):
    """FlexAttention uncompiled, for values on a CPU; the calls of it."""
    made = []

    def flex(query, key, value, **options):
        made.append(options)
        return flex_attention(*(x.as_subclass(torch.Tensor) for x in (query, key, value)), **options)

    monkeypatch.setattr(flex_module, "compiled_flex_attention", lambda: flex)
    sliding_window_block_mask.cache_clear()
    return made


@pytest.mark.parametrize("window", [1, 100, 300])
def test_a_window_is_attended_block_by_block(window, calls):
    projected = projections(2, 700, requires_grad=True)
    context = flash_attention(window)(*projected)
    expected = by_definition(*projected, visible(*one_document(700).stacked, window=window))
    torch.testing.assert_close(context, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(context)
    ours, theirs = (torch.autograd.grad(result, projected, upstream) for result in (context, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {call["attn_mask"].size(0) for call in calls} == {256, 700 - 512}
    assert max(call["attn_mask"].size(1) for call in calls) <= 256 + window - 1


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("packing", PACKINGS)
def test_documents_with_a_mask_are_split(packing, window, calls, monkeypatch):
    monkeypatch.setattr(packing_masks, "QUERY_BLOCK", 64)
    layout = layout_of(packing)
    projected = projections(*layout.document_ids.shape, requires_grad=True)
    context = flash_attention(window)(*projected, layout.stacked)
    expected = by_definition(*projected, visible(*layout.stacked, window=window))
    real = (layout.document_ids >= 0).T
    torch.testing.assert_close(context[real], expected[real], rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(context) * real[..., None]
    ours, theirs = (torch.autograd.grad(result, projected, upstream) for result in (context, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    masks = [call["attn_mask"] for call in calls if call["attn_mask"] is not None]
    assert max((mask.size(0) for mask in masks), default=0) <= 64


@pytest.mark.parametrize("query_block", [128, 256])
@pytest.mark.parametrize("window", [None, 1, 50, 300])
@pytest.mark.parametrize("packing", [*PACKINGS, "none"])
def test_the_block_mask_is_that_of_torch(packing, window, query_block):
    layout = one_document(700) if packing == "none" else layout_of(packing)
    ours = flex_block_mask(layout, window, query_block)
    sequences, length = layout.document_ids.shape
    block_size = (query_block, 128)
    theirs = create_block_mask(ours.mask_mod, sequences, None, length, length, device="cpu", BLOCK_SIZE=block_size)
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE == block_size
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    indices = [torch.arange(length) for _ in range(2)]
    seen = torch.stack(
        [ours.mask_mod(torch.tensor(r), None, indices[0][:, None], indices[1]) for r in range(sequences)]
    )
    real = layout.document_ids >= 0
    assert torch.equal(seen[real], visible(*layout.stacked, window=window)[real])


@pytest.mark.parametrize(
    ("dtype", "groups_are_expanded"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)]
)
def test_a_gpu_computes_no_s_by_s_scores(dtype, groups_are_expanded, calls):
    projected = projections(2, 40, dtype)
    before = _cur_sdpa_kernel_backends()
    context = flash_attention()(*map(stand_in, projected))
    (call,) = calls
    assert call["kernels"] == {
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    }
    assert call["key"].size(1) == (4 if groups_are_expanded else 2)
    assert call["enable_gqa"] is not groups_are_expanded
    assert call["attn_mask"] is None
    assert torch.equal(context, flash_attention()(*projected)), "the heads are repeated in the right order"
    assert _cur_sdpa_kernel_backends() == before


def test_a_kernel_that_is_missing_is_an_error(monkeypatch):
    """The CPU has no fused kernel with dropout: nothing is computed the slow way where a GPU was meant."""
    module = flash_attention(dropout=0.5)
    with pytest.raises(RuntimeError, match=r"No (available kernel|viable backend)"):
        attend_on(module, 40, monkeypatch)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("packing", [*PACKINGS, "none"])
def test_a_gpu_attends_by_flex_what_needs_a_mask(packing, window, eager_flex, calls):
    layout = one_document(700) if packing == "none" else layout_of(packing)
    stacked = None if packing == "none" else layout.stacked
    projected = projections(*layout.document_ids.shape)
    context = flash_attention(window)(*map(stand_in, projected), stacked)
    expected = by_definition(*projected, visible(*layout.stacked, window=window))
    real = (layout.document_ids >= 0).T
    torch.testing.assert_close(context.as_subclass(torch.Tensor)[real], expected[real], rtol=1e-5, atol=1e-6)
    needs_mask = packing != "none" or window is not None
    assert (len(eager_flex), len(calls)) == ((1, 0) if needs_mask else (0, 1))


@pytest.mark.parametrize(
    ("packing", "backend", "query_block"),
    [("packed", "auto", 128), ("none", "triton", 128), ("packed", "flash", 256), ("none", "flash", 256)],
)
def test_flex_gets_the_backend_and_its_blocks(packing, backend, query_block, eager_flex, monkeypatch):
    flex_module.query_block.cache_clear()
    monkeypatch.setattr(flex_module, "flash_query_block", lambda channels: {16: 256}[channels])
    module = flash_attention(window=50, backend=backend)
    layout = one_document(700) if packing == "none" else layout_of(packing)
    projected = projections(*layout.document_ids.shape)
    context = module(*map(stand_in, projected), None if packing == "none" else layout.stacked)
    (call,) = eager_flex
    assert call["kernel_options"] == {"BACKEND": backend.upper()}
    assert (query_block, 128) == call["block_mask"].BLOCK_SIZE
    expected = by_definition(*projected, visible(*layout.stacked, window=50))
    real = (layout.document_ids >= 0).T
    torch.testing.assert_close(context.as_subclass(torch.Tensor)[real], expected[real], rtol=1e-5, atol=1e-6)
    flex_module.query_block.cache_clear()


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("packing", [*PACKINGS, "none"])
def test_a_soft_cap_on_scores(packing, window, eager_flex, calls):
    layout = one_document(300) if packing == "none" else layout_of(packing)
    stacked = None if packing == "none" else layout.stacked
    projected = projections(*layout.document_ids.shape, requires_grad=True)
    module = flash_attention(window, softcap=0.5)
    context = module(*projected, stacked)
    expected = by_definition(*projected, visible(*layout.stacked, window=window), softcap=0.5)
    real = (layout.document_ids >= 0).T
    torch.testing.assert_close(context[real], expected[real], rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(context) * real[..., None]
    ours, theirs = (torch.autograd.grad(result, projected, upstream) for result in (context, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    on_gpu = module(*map(stand_in, projected), stacked).as_subclass(torch.Tensor)
    torch.testing.assert_close(on_gpu[real], expected[real], rtol=1e-5, atol=1e-6)
    assert (len(eager_flex), len(calls)) == (1, 0), "FlexAttention on a GPU, and never without the cap"


def test_a_soft_cap_has_no_dropout():
    with pytest.raises(ValueError, match="a soft cap has no dropout"):
        flash_attention(dropout=0.1, softcap=0.5)


def test_a_window_with_dropout_on_a_gpu_has_bounded_masks_and_all_heads(calls, monkeypatch):
    """FlexAttention has no dropout."""
    module = flash_attention(window=100, dropout=0.5)

    class Called(Exception):
        pass

    def only_record(query, key, value, **options):
        calls.append({"query": query, "key": key, **options})
        raise Called

    monkeypatch.setattr(attention_module, "scaled_dot_product_attention", only_record)
    with pytest.raises(Called):
        attend_on(module, 700, monkeypatch)
    (call,) = calls
    assert call["attn_mask"].shape == (256, 256)
    assert call["dropout_p"] == 0.5
    assert not call["enable_gqa"]


def attend_on(module, length, monkeypatch):
    class Tracker:
        def fork(self):
            return torch.random.fork_rng()

    monkeypatch.setattr(attention_module, "get_cuda_rng_tracker", Tracker)
    return module(*map(stand_in, projections(2, length)))
