"""What a checkpoint of a run holds: tensors, and what is said of the run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from megatron_lpc.training.checkpoint_tensors import sharded_weights
from megatron_lpc.training.optimizer_state import sharded_optimizer_state
from megatron_lpc.training.policy import TrainablePolicy
from megatron_lpc.training.setup import RunContext
from megatron_lpc.training.state import RunState


def run_tensors(policy: TrainablePolicy) -> dict[str, Any]:
    """What the checkpoint holds as sharded tensors, under `model` and `optimizer`."""
    weights = sharded_weights(policy.chunks)
    state = sharded_optimizer_state(policy.optimizer, weights)
    # Empty on a pipeline stage without trainable weights: megatron-core would take it for data that ranks share.
    return {"model": weights} | ({"optimizer": state} if state else {})


def await_weights(context: RunContext, policy: TrainablePolicy) -> None:
    """Wait for the weights of the last update, which otherwise only the next forward pass gathers.

    Collectives: with `overlap_param_gather`, one all-gather per bucket over the data parallel group.
    """
    if context.config.parallel.overlap_param_gather:
        # megatron-core would only await a gather in flight, even one older than the update; there is none, for every
        # pass calls every module and so awaits them all.
        for chunk in policy.chunks:
            chunk.start_param_sync(force_sync=True)


def run_description(context: RunContext, policy: TrainablePolicy, state: RunState, updates: int) -> dict[str, Any]:
    """Content of `description.json`.

    Args:
        updates: those of the optimizer, over all ranks.
    """
    return {
        "run": asdict(state),
        "optimizer_updates": updates,
        "scheduler_steps": policy.scheduler.num_steps,
        "layout": parallel_layout(context),
        "options": asdict(context.config),
    }


def parallel_layout(context: RunContext) -> dict[str, Any]:
    """What the states of random generators depend on."""
    parallel = context.config.parallel
    return {
        "world_size": dist.get_world_size(),
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "num_virtual_stages_per_pipeline_rank": parallel.num_virtual_stages_per_pipeline_rank,
        "sequence_parallel": parallel.sequence_parallel,
        "device": context.platform.device.type,
    }
