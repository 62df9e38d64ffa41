"""Rules of the model's shape."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.derived import fp8_multiple, head_width, padded_vocab_size, seq_len_multiple
from megatron_lpc.config.schema import Config


def attention(config: Config) -> Iterator[str]:
    """Heads and the channels that are rotated."""
    model = config.model
    heads = model.num_attention_heads
    groups = model.num_query_groups or heads
    if model.kv_channels is None and model.hidden_size % heads:
        yield (
            f"--hidden-size {model.hidden_size}: must be a multiple of --num-attention-heads {heads}, "
            "or set --kv-channels"
        )
    if heads % groups:
        yield f"--num-query-groups {groups}: must divide --num-attention-heads {heads}"
    yield from _padded_groups(model.padded_query_groups, groups, model.kv_channels)
    width = head_width(model)
    rotated = int(width * model.rotary_percent)
    if rotated < 2 or rotated % 2:
        yield (
            f"--rotary-percent {model.rotary_percent}: rotates {rotated} of the {width} channels of a head, and "
            "channels are rotated in pairs; choose a fraction (or --kv-channels) that gives an even number"
        )


def _padded_groups(padded: int, groups: int, kv_channels: int | None) -> Iterator[str]:
    if padded >= groups:
        yield f"--padded-query-groups {padded}: must be less than --num-query-groups {groups}, which counts them too"
    if padded and kv_channels is None:
        yield (
            f"--padded-query-groups {padded}: does not change the size of a head, which would follow from the number "
            "of heads; set --kv-channels"
        )


def experts(config: Config) -> Iterator[str]:
    """Mixture of experts."""
    model = config.model
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    if model.num_experts is None:
        return
    if model.moe_router_topk > model.num_experts:
        yield f"--moe-router-topk {model.moe_router_topk}: exceeds --num-experts {model.num_experts}; lower it"
    if model.moe_router_topk == 1 and not model.moe_router_pre_softmax:
        yield (
            "--moe-router-topk 1: a softmax over one chosen expert gives the router no gradient; "
            "add --moe-router-pre-softmax"
        )
    if tensor > 1 and not parallel.sequence_parallel:
        yield (
            f"--num-experts {model.num_experts}: megatron-core trains experts under "
            f"--tensor-model-parallel-size {tensor} only with --sequence-parallel; add it"
        )


def layer_patterns(config: Config) -> Iterator[str]:
    """Options that differ between layers."""
    model = config.model
    for flag, pattern in (
        ("--no-rope-freq", model.no_rope_freq),
        ("--window-attn-skip-freq", model.window_attn_skip_freq),
    ):
        if pattern is None:
            continue
        is_frequency = len(pattern) == 1 and pattern[0] > 0
        says_each_layer = len(pattern) == model.num_layers and set(pattern) <= {0, 1}
        if not is_frequency and not says_each_layer:
            yield (
                f"{flag} {' '.join(map(str, pattern))}: give one number above 0, or a 0 or 1 for each of the "
                f"{model.num_layers} layers"
            )


def portable_layers(config: Config) -> Iterator[str]:
    """What only the portable layers have."""
    model = config.model
    if model.norm_position != "input" and model.num_experts is not None:
        yield f"--norm-position {model.norm_position}: layers of experts have a norm on their input only"
    if model.attn_logit_softcapping is not None and model.attention_dropout:
        yield (
            f"--attention-dropout {model.attention_dropout}: attention with --attn-logit-softcapping has none; "
            "leave it at 0"
        )
    if model.transformer_impl == "local":
        return
    asked = {
        f"--attn-logit-softcapping {model.attn_logit_softcapping}": model.attn_logit_softcapping is not None,
        f"--rope-local-base-freq {model.rope_local_base_freq}": model.rope_local_base_freq is not None,
        f"--norm-position {model.norm_position}": model.norm_position != "input",
        f"--qk-layernorm-scope {model.qk_layernorm_scope}": model.qk_layernorm_scope != "head",
    }
    for flag, is_asked in asked.items():
        if is_asked:
            yield f"{flag}: TransformerEngine's layers have no such thing; set --transformer-impl local"


def fp8(config: Config) -> Iterator[str]:
    """FP8 products, which need TransformerEngine's layers, bf16, and sizes that are made of whole blocks."""
    training = config.training
    if training.fp8_format is None:
        return
    flag = f"--fp8-format {training.fp8_format}"
    if config.model.transformer_impl != "transformer_engine":
        yield f"{flag}: only TransformerEngine's layers compute in FP8; set --transformer-impl transformer_engine"
    if training.bf16 is False:  # Unset it is on, for FP8 needs a GPU.
        yield f"{flag}: what is not FP8 is bfloat16; add --bf16"
    yield from _fp8_sizes(config)


def _fp8_sizes(config: Config) -> Iterator[str]:
    """A rank's shards of the weight matrices, and the tokens that are multiplied with them."""
    model, multiple = config.model, fp8_multiple(config)
    tensor = config.parallel.tensor_model_parallel_size
    groups = model.num_query_groups or model.num_attention_heads
    query, key = head_width(model) * model.num_attention_heads, head_width(model) * groups
    sizes = {
        "--hidden-size": (model.hidden_size, 1),
        "--ffn-hidden-size": (model.ffn_hidden_size, tensor),
        "--num-attention-heads times their width": (query, tensor),
        "the width of queries, keys and values together": (query + 2 * key, tensor),
    }
    needed = f"--fp8-recipe {config.training.fp8_recipe}: needs multiples of {multiple}"
    for name, (size, ranks) in sizes.items():
        if size % (ranks * multiple):
            share = f" over {ranks} tensor parallel ranks" if ranks > 1 else ""
            yield f"{needed}, and {name} is {size}{share}; choose another recipe, or train without --fp8-format"
    pack_to = config.data.pack_to
    if pack_to is not None and pack_to % seq_len_multiple(config):
        yield f"{needed} tokens on each rank; make --pack-to {pack_to} a multiple of {seq_len_multiple(config)}"


def vocabulary(config: Config, tokenizer_vocab_size: int) -> Iterator[str]:
    """The vocabulary; `tokenizer_vocab_size` token ids, special ones included."""
    model = config.model
    tensor = config.parallel.tensor_model_parallel_size
    vocab_size = model.vocab_size or tokenizer_vocab_size
    padded = padded_vocab_size(config, vocab_size)
    if vocab_size < tokenizer_vocab_size:
        yield (
            f"--vocab-size {vocab_size}: the tokenizer has {tokenizer_vocab_size} token ids; "
            "raise it, or leave it unset; a model of Hugging Face is imported with --resize-token-embeddings"
        )
    if padded % tensor:
        yield (
            f"--tensor-model-parallel-size {tensor}: does not divide the padded vocabulary size {padded}; "
            f"make --make-vocab-size-divisible-by {model.make_vocab_size_divisible_by} a multiple of {tensor}"
        )
