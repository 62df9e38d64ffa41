"""Tensors of a decoder, in a megatron-core checkpoint and on Hugging Face: names, shapes, and the pure functions between them.

Shapes: V vocabulary, H hidden size, F width of the MLP or of an expert, X experts, D head width, A query heads, G query groups (key and
value heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from megatron_lpc.config import ModelConfig, head_width


@dataclass(frozen=True)
class Transform:
    """Hugging Face's parts of a tensor -> megatron-core's tensor, and back. Both only move elements, so the way there and back is exact.

    They run on meta tensors as well, which is how shapes are known before anything is read.
    """

    join: Callable[[ModelConfig, Sequence[Tensor]], Tensor]
    split: Callable[[ModelConfig, Tensor], list[Tensor]]


def _join_qkv(model: ModelConfig, parts: Sequence[Tensor]) -> Tensor:
    grouped = [part.unflatten(0, (model.num_query_groups, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _split_qkv(model: ModelConfig, tensor: Tensor) -> list[Tensor]:
    width = head_width(model)
    assert model.num_query_groups is not None
    queries = model.num_attention_heads // model.num_query_groups * width
    grouped = tensor.unflatten(0, (model.num_query_groups, -1))
    return [part.flatten(0, 1) for part in grouped.split([queries, width, width], dim=1)]


SAME = Transform(join=lambda model, parts: parts[0], split=lambda model, tensor: [tensor])
GATE_UP = Transform(join=lambda model, parts: torch.cat(list(parts)), split=lambda model, tensor: list(tensor.chunk(2)))
"""`linear_fc1` is [gate; up]."""
QKV = Transform(join=_join_qkv, split=_split_qkv)
"""`linear_qkv` is, for each query group: its query heads, its key head, its value head. Weights and biases alike."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint, which on Hugging Face is one or more."""

    name: str
    """In the checkpoint. Tensors of layers are stacked along a leading axis, those of experts along a second one, and the norms of a layer
    have TransformerEngine's names, which the portable layers use as well."""
    hf: tuple[str, ...]
    """With `{layer}` where there is one in each layer, and `{expert}` where there is one in each of its experts."""
    shape: Callable[[ModelConfig], tuple[int, ...]]
    """In the checkpoint, without the axes of layers and experts and without padding of the vocabulary."""
    transform: Transform = SAME

    def stack(self, model: ModelConfig) -> tuple[int, ...]:
        """Sizes of the leading axes: layers and experts, layers, or none."""
        sizes = {"{layer}": model.num_layers, "{expert}": model.num_experts or 0}
        return tuple(size for mark, size in sizes.items() if mark in self.hf[0])

    def global_shape(self, model: ModelConfig) -> tuple[int, ...]:
        """Shape of the whole tensor in the checkpoint, without padding of the vocabulary."""
        return self.stack(model) + self.shape(model)

    def places(self, model: ModelConfig) -> Iterator[tuple[int, ...]]:
        """Indices along the leading axes; the empty one, once, outside of layers."""
        return product(*map(range, self.stack(model)))

    def hf_names(self, place: tuple[int, ...]) -> list[str]:
        return [name.format(**dict(zip(("layer", "expert"), place, strict=False))) for name in self.hf]

    def hf_shapes(self, model: ModelConfig) -> list[tuple[int, ...]]:
        """Shapes of the parts, in the order of `hf`."""
        parts = self.transform.split(model, torch.empty(self.shape(model), device="meta"))
        return [tuple(part.shape) for part in parts]


def _qkv_rows(model: ModelConfig) -> int:
    assert model.num_query_groups is not None
    return (model.num_attention_heads + 2 * model.num_query_groups) * head_width(model)


def _vocabulary(model: ModelConfig) -> tuple[int, ...]:
    assert model.vocab_size is not None
    return (model.vocab_size, model.hidden_size)


_LAYER, _HF = "decoder.layers.", "model.layers.{layer}."

EMBEDDING = Weight("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _vocabulary)
OUTPUT = Weight("output_layer.weight", ("lm_head.weight",), _vocabulary)
"""Where the LM head has weights of its own."""
ATTENTION = (
    Weight(
        f"{_LAYER}self_attention.linear_qkv.layer_norm_weight",
        (f"{_HF}input_layernorm.weight",),
        lambda model: (model.hidden_size,),
    ),
    Weight(
        f"{_LAYER}self_attention.linear_qkv.weight",
        (f"{_HF}self_attn.q_proj.weight", f"{_HF}self_attn.k_proj.weight", f"{_HF}self_attn.v_proj.weight"),
        lambda model: (_qkv_rows(model), model.hidden_size),
        QKV,
    ),
    Weight(
        f"{_LAYER}self_attention.linear_proj.weight",
        (f"{_HF}self_attn.o_proj.weight",),
        lambda model: (model.hidden_size, model.num_attention_heads * head_width(model)),
    ),
)
"""What a layer of any family begins with."""
MLP = (
    Weight(
        f"{_LAYER}mlp.linear_fc1.layer_norm_weight",
        (f"{_HF}post_attention_layernorm.weight",),
        lambda model: (model.hidden_size,),
    ),
    Weight(
        f"{_LAYER}mlp.linear_fc1.weight",
        (f"{_HF}mlp.gate_proj.weight", f"{_HF}mlp.up_proj.weight"),
        lambda model: (2 * model.ffn_hidden_size, model.hidden_size),
        GATE_UP,
    ),
    Weight(
        f"{_LAYER}mlp.linear_fc2.weight",
        (f"{_HF}mlp.down_proj.weight",),
        lambda model: (model.hidden_size, model.ffn_hidden_size),
    ),
)
FINAL_NORM = Weight("decoder.final_layernorm.weight", ("model.norm.weight",), lambda model: (model.hidden_size,))
DECODER = (*ATTENTION, *MLP, FINAL_NORM)
"""All of a dense model but the embedding and the LM head."""


def expert_decoder(block: str, gate: str, up: str, down: str) -> tuple[Weight, ...]:
    """All of a mixture of experts but the embedding and the LM head.

    Args:
        block: Hugging Face's name of what stands for the MLP in a layer.
        gate: and the others: of the projections of each expert.
    """
    router, expert = f"{_HF}{block}.gate.weight", f"{_HF}{block}.experts.{{expert}}."
    experts = (
        Weight(
            f"{_LAYER}pre_mlp_layernorm.weight",
            (f"{_HF}post_attention_layernorm.weight",),
            lambda model: (model.hidden_size,),
        ),
        Weight(f"{_LAYER}mlp.router.weight", (router,), lambda model: (model.num_experts or 0, model.hidden_size)),
        Weight(
            f"{_LAYER}mlp.experts.experts.linear_fc1.weight",
            (f"{expert}{gate}.weight", f"{expert}{up}.weight"),
            lambda model: (2 * model.ffn_hidden_size, model.hidden_size),
            GATE_UP,
        ),
        Weight(
            f"{_LAYER}mlp.experts.experts.linear_fc2.weight",
            (f"{expert}{down}.weight",),
            lambda model: (model.hidden_size, model.ffn_hidden_size),
        ),
    )
    return (*ATTENTION, *experts, FINAL_NORM)


QKV_BIAS = (
    Weight(
        f"{_LAYER}self_attention.linear_qkv.bias",
        (f"{_HF}self_attn.q_proj.bias", f"{_HF}self_attn.k_proj.bias", f"{_HF}self_attn.v_proj.bias"),
        lambda model: (_qkv_rows(model),),
        QKV,
    ),
)
QK_NORM = (
    Weight(
        f"{_LAYER}self_attention.q_layernorm.weight",
        (f"{_HF}self_attn.q_norm.weight",),
        lambda model: (head_width(model),),
    ),
    Weight(
        f"{_LAYER}self_attention.k_layernorm.weight",
        (f"{_HF}self_attn.k_norm.weight",),
        lambda model: (head_width(model),),
    ),
)
