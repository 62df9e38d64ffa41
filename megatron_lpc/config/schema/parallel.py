"""The parallel layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lpc.config.idle_rules import (
    FROZEN_BACKBONE,
    FROZEN_GRADIENTS,
    NO_FULL_RECOMPUTE,
    NO_GRADIENT_OVERLAP,
)
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The parallel layout of the model. The data parallel size follows from the world size."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", role=Role.RUN, evaluation=True)
    """`cuda` with NCCL, `cpu` with gloo; `auto` takes CUDA when there is a GPU."""

    tensor_model_parallel_size: int = option(1, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Ranks over which each matrix is split."""

    pipeline_model_parallel_size: int = option(1, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Ranks over which the layers are split."""

    num_virtual_stages_per_pipeline_rank: int | None = option(
        None,
        range="[2, inf)",
        role=Role.RUN,
        evaluation=True,
    )
    """Model chunks per pipeline rank (interleaved 1F1B)."""

    sequence_parallel: bool = option(False, role=Role.RUN, evaluation=True)
    """Split activations between tensor parallel regions along the sequence."""

    use_distributed_optimizer: bool = option(False, role=Role.RUN)
    """Split optimizer state over data parallel ranks."""

    overlap_grad_reduce: bool = option(False, role=Role.RUN, idle=FROZEN_GRADIENTS)
    """Reduce gradients overlapped with the backward pass."""

    overlap_param_gather: bool = option(False, role=Role.RUN, idle=FROZEN_GRADIENTS)
    """Gather updated parameters overlapped with the forward pass (distributed optimizer)."""

    ddp_bucket_size: int | None = option(None, range="[1, inf)", role=Role.RUN, idle=NO_GRADIENT_OVERLAP)
    """Parameters per bucket of overlapped communication; the default is megatron-core's: 40 million, or a million per
    data parallel rank if that is more. Pipeline stages after the first have one bucket, whatever it is."""

    recompute_granularity: Literal["full", "selective"] | None = option(None, role=Role.RUN, idle=FROZEN_BACKBONE)
    """Activation recomputation: whole layers, or attention only."""

    recompute_method: Literal["uniform", "block"] | None = option(None, role=Role.RUN, idle=NO_FULL_RECOMPUTE)
    """With `full`: in equal blocks of layers, or the first layers of a stage."""

    recompute_num_layers: int | None = option(None, range="[1, inf)", role=Role.RUN, idle=NO_FULL_RECOMPUTE)
    """With `full`: layers per block, or recomputed layers per stage."""

    distributed_timeout_minutes: int = option(10, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Minutes after which a waiting collective fails. Waiting for rank 0 to tokenize new data is none."""
