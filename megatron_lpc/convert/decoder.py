"""The tensors of a decoder, as tables of `Weight`s from which every family is composed."""

from __future__ import annotations

from megatron_lpc.config import ModelConfig, head_width
from megatron_lpc.convert.weights import FUSED_QKV, GATE_UP, QKV, Shape, Weight

_LAYER = "decoder.layers."
_HF_LAYER = "model.layers.{layer}."


def _per_hidden_channel(model: ModelConfig) -> Shape:
    return (model.hidden_size,)


def _query_norm(model: ModelConfig) -> Shape:
    heads = model.num_attention_heads if model.qk_layernorm_scope == "projection" else 1
    return (heads * head_width(model),)


def _key_norm(model: ModelConfig) -> Shape:
    assert model.num_query_groups is not None
    heads = model.num_query_groups if model.qk_layernorm_scope == "projection" else 1
    return (heads * head_width(model),)


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


def _norm(name: str, hf: str) -> Weight:
    return Weight(f"{_LAYER}{name}", (f"{_HF_LAYER}{hf}.weight",), _per_hidden_channel)


_QKV = Weight(
    f"{_LAYER}self_attention.linear_qkv.weight",
    (
        f"{_HF_LAYER}self_attn.q_proj.weight",
        f"{_HF_LAYER}self_attn.k_proj.weight",
        f"{_HF_LAYER}self_attn.v_proj.weight",
    ),
    _qkv,
    QKV,
)
_ATTENTION_OUTPUT = Weight(
    f"{_LAYER}self_attention.linear_proj.weight",
    (f"{_HF_LAYER}self_attn.o_proj.weight",),
    _attention_output,
)
_GATE_UP = Weight(
    f"{_LAYER}mlp.linear_fc1.weight",
    (f"{_HF_LAYER}mlp.gate_proj.weight", f"{_HF_LAYER}mlp.up_proj.weight"),
    _gate_and_up,
    GATE_UP,
)
_DOWN = Weight(f"{_LAYER}mlp.linear_fc2.weight", (f"{_HF_LAYER}mlp.down_proj.weight",), _down)

_ATTENTION_INPUT_NORM = "self_attention.linear_qkv.layer_norm_weight"
_ATTENTION_OUTPUT_NORM = "self_attention.linear_proj.post_layernorm.weight"
_MLP_INPUT_NORM = "mlp.linear_fc1.layer_norm_weight"
_MLP_OUTPUT_NORM = "mlp.linear_fc2.post_layernorm.weight"

_ATTENTION = (_norm(_ATTENTION_INPUT_NORM, "input_layernorm"), _QKV, _ATTENTION_OUTPUT)

DECODER = (
    *_ATTENTION,
    _norm(_MLP_INPUT_NORM, "post_attention_layernorm"),
    _GATE_UP,
    _DOWN,
    FINAL_NORM,
)
"""All of a dense model but the embedding and the LM head."""

FUSED_DECODER = (
    _norm(_ATTENTION_INPUT_NORM, "input_layernorm"),
    Weight(f"{_LAYER}self_attention.linear_qkv.weight", (f"{_HF_LAYER}self_attn.qkv_proj.weight",), _qkv, FUSED_QKV),
    _ATTENTION_OUTPUT,
    _norm(_MLP_INPUT_NORM, "post_attention_layernorm"),
    Weight(f"{_LAYER}mlp.linear_fc1.weight", (f"{_HF_LAYER}mlp.gate_up_proj.weight",), _gate_and_up),
    _DOWN,
    FINAL_NORM,
)
"""The same where Hugging Face has one tensor for queries, keys and values, and one for gate and up (Phi)."""

OUTPUT_NORM_DECODER = (
    _QKV,
    _ATTENTION_OUTPUT,
    _norm(_ATTENTION_OUTPUT_NORM, "post_attention_layernorm"),
    _GATE_UP,
    _DOWN,
    _norm(_MLP_OUTPUT_NORM, "post_feedforward_layernorm"),
    FINAL_NORM,
)
"""The same with norms on the output of attention and MLP instead of their input (OLMo 2)."""

BOTH_NORMS_DECODER = (
    *_ATTENTION,
    _norm(_ATTENTION_OUTPUT_NORM, "post_attention_layernorm"),
    _norm(_MLP_INPUT_NORM, "pre_feedforward_layernorm"),
    _GATE_UP,
    _DOWN,
    _norm(_MLP_OUTPUT_NORM, "post_feedforward_layernorm"),
    FINAL_NORM,
)
"""The same with norms on both (Gemma 2 and 3)."""

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
        _query_norm,
    ),
    Weight(
        f"{_LAYER}self_attention.k_layernorm.weight",
        (f"{_HF_LAYER}self_attn.k_norm.weight",),
        _key_norm,
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
        _norm("pre_mlp_layernorm.weight", "post_attention_layernorm"),
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
    return (*_ATTENTION, *experts, FINAL_NORM)
