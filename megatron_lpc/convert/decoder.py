"""The tensors of a decoder, as tables of `Weight`s from which every family is composed."""

from __future__ import annotations

from megatron_lpc.config import ModelConfig, head_width
from megatron_lpc.convert.weights import GATE_UP, QKV, Shape, Weight

_LAYER = "decoder.layers."
_HF_LAYER = "model.layers.{layer}."


def _per_hidden_channel(model: ModelConfig) -> Shape:
    return (model.hidden_size,)


def _per_head_channel(model: ModelConfig) -> Shape:
    return (head_width(model),)


def _vocabulary(model: ModelConfig) -> Shape:
    assert model.vocab_size is not None
    return (model.vocab_size, model.hidden_size)


def _qkv_bias(model: ModelConfig) -> Shape:
    assert model.num_query_groups is not None
    heads = model.num_attention_heads + 2 * model.num_query_groups
    return (heads * head_width(model),)


def _qkv(model: ModelConfig) -> Shape:
    return (*_qkv_bias(model), model.hidden_size)


def _attention_output(model: ModelConfig) -> Shape:
    return (model.hidden_size, model.num_attention_heads * head_width(model))


def _gate_and_up(model: ModelConfig) -> Shape:
    return (2 * model.ffn_hidden_size, model.hidden_size)


def _down(model: ModelConfig) -> Shape:
    return (model.hidden_size, model.ffn_hidden_size)


def _router(model: ModelConfig) -> Shape:
    return (model.num_experts or 0, model.hidden_size)


EMBEDDING = Weight("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _vocabulary)
LM_HEAD = Weight("output_layer.weight", ("lm_head.weight",), _vocabulary)
"""Only where the LM head is not tied to the embedding."""
FINAL_NORM = Weight("decoder.final_layernorm.weight", ("model.norm.weight",), _per_hidden_channel)

ATTENTION = (
    Weight(
        f"{_LAYER}self_attention.linear_qkv.layer_norm_weight",
        (f"{_HF_LAYER}input_layernorm.weight",),
        _per_hidden_channel,
    ),
    Weight(
        f"{_LAYER}self_attention.linear_qkv.weight",
        (
            f"{_HF_LAYER}self_attn.q_proj.weight",
            f"{_HF_LAYER}self_attn.k_proj.weight",
            f"{_HF_LAYER}self_attn.v_proj.weight",
        ),
        _qkv,
        QKV,
    ),
    Weight(
        f"{_LAYER}self_attention.linear_proj.weight",
        (f"{_HF_LAYER}self_attn.o_proj.weight",),
        _attention_output,
    ),
)
"""The first half of a layer, the same in every family."""

MLP = (
    Weight(
        f"{_LAYER}mlp.linear_fc1.layer_norm_weight",
        (f"{_HF_LAYER}post_attention_layernorm.weight",),
        _per_hidden_channel,
    ),
    Weight(
        f"{_LAYER}mlp.linear_fc1.weight",
        (f"{_HF_LAYER}mlp.gate_proj.weight", f"{_HF_LAYER}mlp.up_proj.weight"),
        _gate_and_up,
        GATE_UP,
    ),
    Weight(
        f"{_LAYER}mlp.linear_fc2.weight",
        (f"{_HF_LAYER}mlp.down_proj.weight",),
        _down,
    ),
)
"""The second half of a dense layer."""

DECODER = (*ATTENTION, *MLP, FINAL_NORM)
"""All of a dense model but the embedding and the LM head."""

QKV_BIAS = (
    Weight(
        f"{_LAYER}self_attention.linear_qkv.bias",
        (
            f"{_HF_LAYER}self_attn.q_proj.bias",
            f"{_HF_LAYER}self_attn.k_proj.bias",
            f"{_HF_LAYER}self_attn.v_proj.bias",
        ),
        _qkv_bias,
        QKV,
    ),
)
QK_NORM = (
    Weight(
        f"{_LAYER}self_attention.q_layernorm.weight",
        (f"{_HF_LAYER}self_attn.q_norm.weight",),
        _per_head_channel,
    ),
    Weight(
        f"{_LAYER}self_attention.k_layernorm.weight",
        (f"{_HF_LAYER}self_attn.k_norm.weight",),
        _per_head_channel,
    ),
)


def expert_decoder(block: str, *, gate: str, up: str, down: str) -> tuple[Weight, ...]:
    """All of a mixture of experts but the embedding and the LM head.

    Args:
        block: Hugging Face's name of the module that stands in the place of a layer's MLP.
        gate, up, down: Hugging Face's names of the projections of each expert.
    """
    hf_block = f"{_HF_LAYER}{block}."
    hf_expert = hf_block + "experts.{expert}."
    experts = (
        Weight(
            f"{_LAYER}pre_mlp_layernorm.weight",
            (f"{_HF_LAYER}post_attention_layernorm.weight",),
            _per_hidden_channel,
        ),
        Weight(
            f"{_LAYER}mlp.router.weight",
            (f"{hf_block}gate.weight",),
            _router,
        ),
        Weight(
            f"{_LAYER}mlp.experts.experts.linear_fc1.weight",
            (f"{hf_expert}{gate}.weight", f"{hf_expert}{up}.weight"),
            _gate_and_up,
            GATE_UP,
        ),
        Weight(
            f"{_LAYER}mlp.experts.experts.linear_fc2.weight",
            (f"{hf_expert}{down}.weight",),
            _down,
        ),
    )
    return (*ATTENTION, *experts, FINAL_NORM)
