"""Gradients summed over data parallel ranks, by megatron-core's wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from torch import nn

from megatron_lpc.config import Config


def wrap_data_parallel(config: Config, chunks: list[nn.Module]) -> list[DistributedDataParallel]:
    """Each chunk with fp32 gradient buffers, which are summed over the data parallel group.

    Collectives in backward: one all-reduce per bucket, or one reduce-scatter with the distributed optimizer; overlapped
    with the backward pass where `overlap_grad_reduce` says so.
    """
    parallel = config.parallel
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        bucket_size=parallel.ddp_bucket_size,
    )
    wrapped = [
        # Later virtual chunks start their backward pass first and cannot overlap: one bucket each, as in Megatron-LM.
        DistributedDataParallel(chunk.config, ddp_config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    # megatron-core's pipeline schedules find the functions that they call in the model's configuration.
    core_config = wrapped[0].config
    core_config.finalize_model_grads_func = finalize_model_grads
    if parallel.overlap_grad_reduce:
        core_config.no_sync_func = _one_or_list([chunk.no_sync for chunk in wrapped])
    if parallel.overlap_grad_reduce and len(wrapped) > 1:
        core_config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    if parallel.overlap_param_gather and len(wrapped) > 1:
        core_config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
    return wrapped


def _one_or_list(functions: list[Callable[..., Any]]) -> Callable[..., Any] | list[Callable[..., Any]]:
    return functions if len(functions) > 1 else functions[0]
