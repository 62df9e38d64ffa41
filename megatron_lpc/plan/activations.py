"""Activations that autograd keeps for the backward pass: formulas, for the layers of this project.

The method is that of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022, arXiv
2205.05198, section 4), which sums what each operation of a layer saves. Its layer is another one (GELU, LayerNorm,
dropout, S x S scores: s b h (10 + 24 / t + 5 a s / (h t)) bytes); ours has RMSNorm, a gated MLP, grouped queries, no
dropout and attention that never holds the scores. The tests count what autograd saves in such a layer, and find these
formulas exact.

Shape legend: S tokens of a sequence, R sequences, t tensor parallel size, H hidden size, a query heads, g query groups
and F size of the MLP, all three on one rank, D channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_lpc.config import Config, head_width, layer_windows
from megatron_lpc.model.packing_masks import QUERY_BLOCK
from megatron_lpc.plan.micro_batch import MicroBatch

_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What the activations of a layer depend on, on one rank."""

    hidden_size: int
    """H."""
    heads: int
    """a."""
    groups: int
    """g."""
    head_width: int
    """D."""
    rotated: int
    """Channels of a head that are rotated."""
    ffn_size: int
    """F, of each expert where there are experts."""
    experts: int = 0
    topk: int = 1
    sequence_shards: int = 1
    """t with sequence parallelism, else 1."""
    itemsize: int = 2
    """Bytes of a number."""
    norm_itemsize: int = 2
    """Bytes of a number in the norms, which compute in fp32 where they are composed or zero-centred."""
    norm_position: str = "input"
    qk_norm: bool = False
    hidden_dropout: bool = False
    fused_norms: bool = True
    """On CUDA; elsewhere torch composes RMSNorm of operations that save the normalised input too."""
    fused_activation: bool = False
    """TransformerEngine's: SwiGLU and rotary embedding are one operation each."""
    copies_masks: bool = False
    """On a CPU: attention with a mask keeps it in fp32, block by block, and the blocks beside their concatenation."""
    window: int | None = None


def layer_sizes(config: Config, device_type: str) -> LayerSizes:
    """Sizes of the layers of a run. Where layers differ by a window, of those without one."""
    model, tensor = config.model, config.parallel.tensor_model_parallel_size
    on_cuda = device_type == "cuda"
    itemsize = 2 if config.training.bf16 else _FP32
    width = head_width(model)
    with_te = model.transformer_impl == "transformer_engine"
    windows = layer_windows(model)
    return LayerSizes(
        hidden_size=model.hidden_size,
        heads=model.num_attention_heads // tensor,
        groups=(model.num_query_groups or model.num_attention_heads) // tensor,
        head_width=width,
        rotated=int(width * model.rotary_percent),
        ffn_size=model.ffn_hidden_size // tensor,
        experts=model.num_experts or 0,
        topk=1 if model.num_experts is None else model.moe_router_topk,
        sequence_shards=tensor if config.parallel.sequence_parallel else 1,
        itemsize=itemsize,
        norm_itemsize=itemsize if on_cuda and not model.apply_layernorm_1p else _FP32,
        norm_position=model.norm_position,
        qk_norm=model.qk_layernorm,
        hidden_dropout=model.hidden_dropout > 0,
        fused_norms=on_cuda,
        fused_activation=with_te and model.activation == "swiglu",
        copies_masks=not on_cuda,
        window=None if None in windows else max(window for window in windows if window),
    )


def norms_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """The norms of a layer: their inputs, one number per token, and their outputs where a matrix reads these.

    S R / t tokens with sequence parallelism. 4 S R H numbers where norms are fused and on the input.
    """
    tokens = batch.tokens // sizes.sequence_shards
    per_norm = sizes.norm_itemsize * (1 if sizes.fused_norms else 2)  # The input, and the normalised input.
    count = 4 if sizes.norm_position == "both" else 2
    # Beside norms: the inputs of the two column-parallel matrices, which are outputs of the norms before them.
    matrices = 2 * sizes.itemsize
    dropout = 2 if sizes.hidden_dropout else 0
    return tokens * (sizes.hidden_size * (count * per_norm + matrices + dropout) + count * _FP32)


def attention_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """Rotated queries and keys; queries, keys and values as projected, of which the values are a view; the context.

    S R (3 a + 3 g) D numbers, and a tables of angles for each rotation.
    """
    width = sizes.head_width
    projected = (sizes.heads + 2 * sizes.groups) * width
    rotated = (sizes.heads + sizes.groups) * width
    context = sizes.heads * width
    norms = 0
    if sizes.qk_norm:
        # The queries, copied out of the projection; and, composed, normalised queries and keys.
        norms = sizes.heads * width + (0 if sizes.fused_norms else rotated)
    per_token = (projected + rotated + context + norms) * sizes.itemsize
    if sizes.qk_norm:
        per_token += (sizes.heads + sizes.groups) * _FP32
    positions = batch.tokens if batch.has_mask else batch.seq_len
    tables = 0 if sizes.fused_activation else 4 * sizes.rotated * positions * sizes.itemsize
    return batch.tokens * per_token + tables + core_attention_bytes(sizes, batch)


def core_attention_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """What attention itself keeps beside its inputs and its result: one number per query and head.

    Where sequences are packed or share prompts also the context of its blocks beside their concatenation, and for
    shared prompts on a CPU the masks of the blocks.
    """
    statistics = batch.tokens * sizes.heads * _FP32
    if not batch.has_mask:
        return statistics
    blocks = batch.tokens * sizes.heads * sizes.head_width * sizes.itemsize
    has_masks = sizes.copies_masks and batch.shares_prompt
    return statistics + blocks + (_mask_bytes(sizes, batch) if has_masks else 0)


def _mask_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """fp32 masks of blocks of queries, each by all keys from the beginning of its pair on."""
    of_pair = batch.lengths.prompt + 2 * batch.lengths.response
    blocks = math.ceil(of_pair / QUERY_BLOCK)
    keys = min(of_pair, (blocks + 1) * QUERY_BLOCK / 2)
    return int(batch.tokens * keys * _FP32)


def mlp_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """Gate and up projection, the activated gate, the shifted up projection, and their product.

    5 S R F numbers, or 3 S R F where the activation is fused. With experts for each expert that a token goes to, with
    F more that are weighted, and H for the tokens in the order of experts.
    """
    per_token = (3 if sizes.fused_activation else 5) * sizes.ffn_size * sizes.itemsize
    if not sizes.experts:
        return batch.tokens * per_token
    weighted = sizes.ffn_size * sizes.itemsize
    ordered = sizes.hidden_size * sizes.itemsize
    # Two indices and two weights of each expert of a token; scores of all experts, and which are chosen.
    router = sizes.topk * 24 + sizes.experts * 5
    return batch.tokens * (sizes.topk * (per_token + weighted + ordered) + router)


def layer_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """All that a layer keeps of one micro-batch."""
    return norms_bytes(sizes, batch) + attention_bytes(sizes, batch) + mlp_bytes(sizes, batch)


def boundary_bytes(sizes: LayerSizes, batch: MicroBatch) -> int:
    """Hidden states between layers: S R H / t numbers with sequence parallelism, else S R H."""
    return batch.tokens // sizes.sequence_shards * sizes.hidden_size * sizes.itemsize


@dataclass(frozen=True)
class Activations:
    """Of one model chunk and one micro-batch."""

    stored: int
    """Bytes from the forward to the backward pass."""
    rebuilt: int
    """Bytes that the backward pass computes again, at one time."""


def chunk_activations(config: Config, sizes: LayerSizes, batch: MicroBatch, layers: int) -> Activations:
    """Activations of a model chunk of some layers, under the run's recomputation."""
    if config.training.freeze_backbone:
        return Activations(0, 0)
    parallel = config.parallel
    of_layer, boundary = layer_bytes(sizes, batch), boundary_bytes(sizes, batch)
    if parallel.recompute_granularity is None:
        return Activations(layers * of_layer, 0)
    if parallel.recompute_granularity == "selective":
        core = core_attention_bytes(sizes, batch)
        return Activations(layers * (of_layer - core), core)
    count = parallel.recompute_num_layers
    assert count is not None
    if parallel.recompute_method == "uniform":
        return Activations(math.ceil(layers / count) * boundary, count * of_layer)
    count = min(count, layers)
    return Activations(count * boundary + (layers - count) * of_layer, of_layer)


def backward_workspace(sizes: LayerSizes, batch: MicroBatch) -> int:
    """Gradients that exist at one time in the backward pass of an MLP, the widest part of a layer.

    Those of its output, input and product, of both halves of the projection and of their concatenation; and, with
    sequence parallelism, its gathered input. Beside them the gradient of one weight, which the caller adds.
    """
    tokens = batch.tokens
    full = tokens * sizes.hidden_size * sizes.itemsize
    gathered = full if sizes.sequence_shards > 1 else 0
    return boundary_bytes(sizes, batch) + full + gathered + sizes.topk * 5 * tokens * sizes.ffn_size * sizes.itemsize
