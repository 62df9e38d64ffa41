"""Tensors of a decoder, in a megatron-core checkpoint and on Hugging Face: names, shapes, and the pure functions between them.

Shapes: V vocabulary, H hidden size, F MLP width, D head width, A query heads, G query groups (key and value heads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lpc.config import ModelConfig


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
    """In the checkpoint. Tensors of layers are stacked along a leading axis, and the norms of a layer have TransformerEngine's names,
    which the portable layers use as well."""
    hf: tuple[str, ...]
    """With `{layer}` where there is one in each layer."""
    shape: Callable[[ModelConfig], tuple[int, ...]]
    """In the checkpoint, without the axis of layers and without padding of the vocabulary."""
    transform: Transform = SAME

    @property
    def in_layers(self) -> bool:
        return "{layer}" in self.hf[0]

    def global_shape(self, model: ModelConfig) -> tuple[int, ...]:
        """Shape of the whole tensor in the checkpoint, without padding of the vocabulary."""
        return ((model.num_layers,) if self.in_layers else ()) + self.shape(model)

    def layers(self, model: ModelConfig) -> Iterator[int | None]:
        """Numbers of the layers; None, once, outside of them."""
        yield from range(model.num_layers) if self.in_layers else (None,)

    def hf_names(self, layer: int | None) -> list[str]:
        return [name.format(layer=layer) for name in self.hf]

    def hf_shapes(self, model: ModelConfig) -> list[tuple[int, ...]]:
        """Shapes of the parts, in the order of `hf`."""
        parts = self.transform.split(model, torch.empty(self.shape(model), device="meta"))
        return [tuple(part.shape) for part in parts]


def head_width(model: ModelConfig) -> int:
    """D."""
    return model.kv_channels or model.hidden_size // model.num_attention_heads


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
DECODER = (
    Weight(f"{_LAYER}self_attention.linear_qkv.layer_norm_weight", (f"{_HF}input_layernorm.weight",), lambda model: (model.hidden_size,)),
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
    Weight(f"{_LAYER}mlp.linear_fc1.layer_norm_weight", (f"{_HF}post_attention_layernorm.weight",), lambda model: (model.hidden_size,)),
    Weight(
        f"{_LAYER}mlp.linear_fc1.weight",
        (f"{_HF}mlp.gate_proj.weight", f"{_HF}mlp.up_proj.weight"),
        lambda model: (2 * model.ffn_hidden_size, model.hidden_size),
        GATE_UP,
    ),
    Weight(f"{_LAYER}mlp.linear_fc2.weight", (f"{_HF}mlp.down_proj.weight",), lambda model: (model.hidden_size, model.ffn_hidden_size)),
    Weight("decoder.final_layernorm.weight", ("model.norm.weight",), lambda model: (model.hidden_size,)),
)
"""What all families have."""
QKV_BIAS = (
    Weight(
        f"{_LAYER}self_attention.linear_qkv.bias",
        (f"{_HF}self_attn.q_proj.bias", f"{_HF}self_attn.k_proj.bias", f"{_HF}self_attn.v_proj.bias"),
        lambda model: (_qkv_rows(model),),
        QKV,
    ),
)
QK_NORM = (
    Weight(f"{_LAYER}self_attention.q_layernorm.weight", (f"{_HF}self_attn.q_norm.weight",), lambda model: (head_width(model),)),
    Weight(f"{_LAYER}self_attention.k_layernorm.weight", (f"{_HF}self_attn.k_norm.weight",), lambda model: (head_width(model),)),
)
