"""Logits of the same token ids from either format, to compare them.

A model with a head is compared without its latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_lpc.config import (
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_lpc.convert.head import MODEL_TYPE
from megatron_lpc.convert.hf_settings import read_settings

_VOCAB_MULTIPLE = 840
"""Padding of the vocabulary: every number of ranks up to 8 divides it, whatever the original was padded to."""
_MIN_POSITIONS = 512
"""Room for the longest prompt of a comparison."""


def hf_logits(folder: Path, tokens: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Logits that transformers computes, on the CPU.

    Args:
        folder: a Hugging Face model.
        tokens: token ids [B, S] each.
        dtype: dtype of the weights and of the computation.

    Returns:
        [B, S, V] fp32 for each [B, S].
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from megatron_lpc.convert.hub.configuration_lpc import LPCConfig
    from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM

    settings = read_settings(folder)
    has_head = settings["model_type"] == MODEL_TYPE
    model_class: Any = LPCForCausalLM if has_head else AutoModelForCausalLM
    config_class: Any = LPCConfig if has_head else AutoConfig.for_model
    model = model_class.from_pretrained(folder, config=config_class(**settings), dtype=dtype, trust_remote_code=False)
    model = model.eval()
    model = getattr(model, "backbone", model)
    with torch.no_grad():
        return [model(batch).logits.float() for batch in tokens]


def megatron_logits(
    folder: Path, model: ModelConfig, tokens: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Logits that megatron-core computes, on the CPU, in this process.

    Args:
        folder: folder of one checkpoint, or of several, whose latest is meant.
        model: options of its model.
        tokens: token ids [B, S] each.
        dtype: dtype of the computation, fp32 or bf16.

    Returns:
        [B, S, V] fp32 for each [B, S].

    Raises:
        ConfigError: the checkpoint is not that of such a model.
    """
    from megatron_lpc.training.checkpoint_tensors import load_weights
    from megatron_lpc.training.checkpoint_verification import open_checkpoint
    from megatron_lpc.training.setup import start_distributed, stop_distributed

    config = logits_config(model, bf16=dtype == torch.bfloat16)
    context = start_distributed(config)
    try:
        from megatron_lpc.model import build_model  # After the platform has prepared megatron-core for the CPU.

        chunks = build_model(config, context.platform, context.groups, config.latent, fresh="none")
        load_weights(chunks, open_checkpoint(folder, context), groups=context.groups, latent_head=False, config=config)
        return logits_of(chunks, tokens)
    finally:
        stop_distributed()


def logits_config(model: ModelConfig, *, bf16: bool = False, parallel: ParallelConfig | None = None) -> Config:
    """Options that build a model for its logits only; there is no data, and its options are not read."""
    return Config(
        model=replace(
            model,
            make_vocab_size_divisible_by=_VOCAB_MULTIPLE,
            max_position_embeddings=max(model.max_position_embeddings, _MIN_POSITIONS),
        ),
        latent=LatentConfig(latent_mode="none"),
        loss=LossConfig(loss_type="simpo"),
        data=DataConfig(train_data=["none"], tokenizer_model="none"),
        parallel=parallel or ParallelConfig(device="cpu"),
        training=TrainingConfig(bf16=bf16),
    )


def logits_of(chunks: list[nn.Module], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Logits in any parallel layout without interleaved stages.

    Collectives: the pipeline's sends and receives, and an all-gather of vocabulary shards over the tensor parallel
    group.

    Args:
        chunks: this rank's model, one chunk.
        tokens: token ids [B, S] each.

    Returns:
        On the last pipeline stage [B, S, V] fp32 for each [B, S]; empty elsewhere.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_lpc.model import unwrapped

    def step(batches: Iterator[Tensor], chunk: nn.Module) -> tuple[Tensor, Any]:
        model = unwrapped(chunk)
        hidden = model.hidden_states(next(batches))
        return hidden, lambda hidden, non_loss_data: _all_logits(model, hidden)

    (chunk,) = chunks
    chunk.eval()
    with torch.no_grad():
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(tokens),
            model=chunk,
            num_microbatches=len(tokens),
            seq_length=tokens[0].size(1),
            micro_batch_size=tokens[0].size(0),
            forward_only=True,
            collect_non_loss_data=True,
        )


def _all_logits(model: Any, hidden: Tensor) -> Tensor:
    """[S, B, H] -> [B, S, V]: the LM head over all tensor parallel ranks, without padding of the vocabulary."""
    group = model.pg_collection.tp
    own = model.cap(hidden @ model.lm_head_weight().t()).float().contiguous()
    shards = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(shards, own, group=group)
    logits = torch.cat(shards, dim=-1)[..., : model.real_vocab_size]
    return logits.transpose(0, 1)
