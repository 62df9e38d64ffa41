"""Rules of data, objective and device."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.derived import head_width
from megatron_lpc.config.objectives import OBJECTIVES_WITH_REFERENCE
from megatron_lpc.config.schema import Config

OVERRIDES = ("data", "seed", "batch", "loss")
"""What `override_resume` may name."""


def files(config: Config) -> Iterator[str]:
    """Files that must be named."""
    if not config.data.train_data:
        yield "--train-data: is empty; name at least one file"
    if not config.data.tokenizer_model:
        yield "--tokenizer-model: is empty; name a tokenizer's folder or file"
    if config.checkpoint.load == "auto" and config.checkpoint.save is None:
        yield "--load auto: resumes from --save, which is unset; set it"
    for name in config.checkpoint.override_resume:
        if name not in OVERRIDES:
            yield f"--override-resume {name}: is none of {', '.join(OVERRIDES)}"


def streaming(config: Config) -> Iterator[str]:
    """Streamed training data."""
    if not config.data.streaming:
        return
    if config.training.train_iters is None:
        yield "--streaming: the length of a stream is not known; set --train-iters"
    if config.loss.reference == "precomputed":
        yield (
            "--streaming: streamed pairs have no example index under which a cache could keep log-probs; "
            "set --reference online"
        )


def lengths(config: Config) -> Iterator[str]:
    """Lengths of sequences and prompts."""
    data = config.data
    positions = config.model.max_position_embeddings
    if data.max_length > positions:
        yield (
            f"--max-length {data.max_length}: exceeds --max-position-embeddings {positions}; "
            "lower the one, or raise the other"
        )
    if data.max_prompt_length is not None and data.max_prompt_length >= data.max_length:
        yield (
            f"--max-prompt-length {data.max_prompt_length}: leaves no room for a response within "
            f"--max-length {data.max_length}"
        )


def packing(config: Config) -> Iterator[str]:
    """Packed sequences and shared prompts."""
    data = config.data
    tensor = config.parallel.tensor_model_parallel_size
    entropy = config.latent.usage_entropy_weight
    if data.pack_to is not None and config.parallel.sequence_parallel and data.pack_to % tensor:
        yield (
            f"--pack-to {data.pack_to}: --sequence-parallel splits sequences over "
            f"--tensor-model-parallel-size {tensor}; make it a multiple of that"
        )
    if data.share_prompt and config.model.transformer_impl == "transformer_engine":
        yield (
            "--share-prompt: TransformerEngine's attention takes no such mask; set --transformer-impl local, "
            "or drop it and use --pack-to, which packs separate sequences"
        )
    if entropy and data.pack_to is not None:
        yield (
            f"--usage-entropy-weight {entropy}: depends on which pairs share a micro-batch, and --pack-to chooses them "
            "by length; drop one of the two"
        )


def objective(config: Config) -> Iterator[str]:
    """The objective and its reference."""
    loss = config.loss
    latent_mode = config.latent.latent_mode
    if loss.loss_type == "sft" and latent_mode != "none":
        yield f"--latent-mode {latent_mode}: --loss-type sft has no pair to compare; set --latent-mode none"
    has_reference = loss.loss_type in OBJECTIVES_WITH_REFERENCE and not config.training.freeze_backbone
    if has_reference and loss.reference == "precomputed" and loss.reference_cache is None:
        yield (
            "--reference precomputed: needs --reference-cache; "
            "write it with `python -m megatron_lpc.precompute_reference`"
        )


def frozen_backbone(config: Config) -> Iterator[str]:
    """What is left to train, and how fast."""
    if not config.training.freeze_backbone:
        return
    if config.latent.latent_mode == "none":
        yield (
            "--freeze-backbone: trains only the LPC head, and --latent-mode none has none; set --latent-mode lpc, or "
            "drop it"
        )
    if config.training.cache_hidden_states is None:
        return
    if config.data.streaming:
        yield (
            "--cache-hidden-states: streamed pairs have no example index under which hidden states could be kept; drop "
            "--streaming, or train without it"
        )
    stages = config.parallel.pipeline_model_parallel_size
    if stages > 1:
        yield (
            f"--cache-hidden-states: all but the last of --pipeline-model-parallel-size {stages} stages would have "
            "nothing to do; set it to 1, and split the model over tensor parallel ranks"
        )


def learning_rates(config: Config) -> Iterator[str]:
    """The LR schedule."""
    training = config.training
    if training.lr_decay_style == "constant":
        return
    flag, rate = ("--latent-lr", training.latent_lr) if training.freeze_backbone else ("--lr", training.lr)
    if training.min_lr > rate:
        yield f"--min-lr {training.min_lr}: exceeds {flag} {rate}; a decay ends below its start"


def device_support(config: Config, device: str) -> Iterator[str]:
    """What a device cannot do: `cpu`, `cuda`, or `auto` where it is not known yet."""
    is_local = config.model.transformer_impl == "local"
    dropout = config.model.attention_dropout
    needs_mask = config.data.share_prompt or config.data.pack_to is not None
    if not is_local and device == "cpu":
        yield "--transformer-impl transformer_engine: TransformerEngine runs on GPUs only; set --transformer-impl local"
    size = head_width(config.model)
    if is_local and device == "cuda" and (size < 16 or size % 8):
        yield (
            f"--kv-channels: attention heads have {size} channels; fused attention on a GPU takes multiples of 8, from "
            "16 on"
        )
    if needs_mask and dropout and is_local and device == "cuda":
        yield (
            f"--attention-dropout {dropout}: FlexAttention, which --share-prompt and --pack-to need on a GPU, "
            "has no dropout; set it to 0"
        )
    if config.logging.record_memory_history and device == "cpu":
        yield "--record-memory-history: PyTorch records its CUDA allocator only; drop it on a CPU"


def flex_attention(config: Config, device: str) -> Iterator[str]:
    """What torch's FlexAttention and FlashAttention-4 cannot do; a device as in `device_support`."""
    backend = config.model.flex_attention_backend
    flag = f"--flex-attention-backend {backend}"
    if backend == "auto":
        return
    if device == "cpu":
        yield f"{flag}: FlexAttention is used on GPUs only; leave it at its default, auto"
    if config.model.attention_dropout:
        yield f"{flag}: FlexAttention has no dropout; set --attention-dropout 0"
    if backend != "flash":
        return
    if config.training.bf16 is False:  # Unset it is on, for `flash` needs a GPU.
        yield f"{flag}: FlashAttention-4 computes in half precision only; add --bf16"
    if config.model.attn_logit_softcapping is not None:
        yield f"{flag}: takes no --attn-logit-softcapping; set it to triton"
    if config.training.deterministic:
        # torch refuses it before Blackwell, and there without an order of writes that `flex_block_mask` does not make.
        yield (
            f"{flag}: its backward pass with a block mask does not repeat its results; set --flex-attention-backend "
            "triton, or drop --deterministic"
        )
