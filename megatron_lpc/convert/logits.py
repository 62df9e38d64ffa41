"""Logits of the same tokens from either format, to compare them. A model with a head is compared without its latent."""

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
from megatron_lpc.convert.hf_folder import read_json


def hf_logits(folder: Path, tokens: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Logits [R, S, V] fp32 that transformers computes in `dtype` for each [R, S] of tokens, on the CPU."""
    from transformers import AutoModelForCausalLM

    from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM

    loader: Any = (
        LPCForCausalLM if read_json(folder / "config.json").get("model_type") == MODEL_TYPE else AutoModelForCausalLM
    )
    model = loader.from_pretrained(folder, dtype=dtype).eval()
    model = getattr(model, "backbone", model)
    with torch.no_grad():
        return [model(rows).logits.float() for rows in tokens]


def megatron_logits(
    folder: Path, model: ModelConfig, tokens: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Logits [R, S, V] fp32 that megatron-core computes in `dtype` (fp32 or bf16) for each [R, S] of tokens, on the CPU, in this process.

    Raises:
        ConfigError: the checkpoint is not that of such a model.
    """
    from megatron_lpc.training.checkpoint_folder import resolve_checkpoint
    from megatron_lpc.training.checkpoint_tensors import load_weights
    from megatron_lpc.training.setup import start_distributed, stop_distributed

    config = logits_config(model, bf16=dtype == torch.bfloat16)
    context = start_distributed(config)
    try:
        from megatron_lpc.model import build_model

        chunks = build_model(config, context.platform, context.groups, config.latent)
        load_weights(chunks, resolve_checkpoint(folder), groups=context.groups, latent_head=False, config=config)
        return logits_of(chunks, tokens)
    finally:
        stop_distributed()


def logits_config(model: ModelConfig, *, bf16: bool = False, parallel: ParallelConfig | None = None) -> Config:
    """Options that build a model for its logits alone; there are no data, and their options are not read."""
    return Config(
        # Whatever the original was padded to: any number of ranks up to 8 divides this.
        model=replace(
            model, make_vocab_size_divisible_by=840, max_position_embeddings=max(model.max_position_embeddings, 512)
        ),
        latent=LatentConfig(latent_mode="none"),
        loss=LossConfig(loss_type="simpo"),
        data=DataConfig(train_data=["none"], tokenizer_model="none"),
        parallel=parallel or ParallelConfig(device="cpu"),
        training=TrainingConfig(bf16=bf16),
    )


def logits_of(chunks: list[nn.Module], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Logits [R, S, V] fp32 of each [R, S] of tokens, in any parallel layout without interleaved stages.

    Collectives: the pipeline's sends and receives, an all-gather of the vocabulary's parts over the tensor parallel group.

    Args:
        chunks: this rank's model.

    Returns:
        On the last pipeline stage; empty elsewhere.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_lpc.model import unwrapped

    def step(rows: Iterator[Tensor], chunk: nn.Module) -> tuple[Tensor, Any]:
        batch, bare = next(rows), unwrapped(chunk)
        hidden = bare.hidden_states(batch)
        return hidden, lambda hidden, non_loss_data: _all_words(bare, hidden)

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


def _all_words(model: Any, hidden: Tensor) -> Tensor:
    """[S, R, H] -> [R, S, V]: the LM head over all tensor parallel ranks, without padding."""
    group = model.pg_collection.tp
    own = (hidden @ model.lm_head_weight().t()).float().contiguous()
    parts = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(parts, own, group=group)
    return torch.cat(parts, dim=-1)[..., : model.real_vocab_size].transpose(0, 1)
