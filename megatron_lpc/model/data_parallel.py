"""Gradients summed over data parallel ranks, by megatron-core's wrapper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

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
    core_config.finalize_model_grads_func = _finalize_gradients
    if parallel.overlap_grad_reduce:
        core_config.no_sync_func = _one_or_list([chunk.no_sync for chunk in wrapped])
    if parallel.overlap_grad_reduce and len(wrapped) > 1:
        core_config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    if parallel.overlap_param_gather and len(wrapped) > 1:
        core_config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
    return wrapped


def _finalize_gradients(
    chunks: Sequence[DistributedDataParallel],
    num_pairs: Tensor,
    pg_collection: ProcessGroupCollection,
    **options: Any,
) -> None:
    """Reduce gradients as megatron-core does, and divide them by the number of pairs of the global batch.

    megatron-core would divide by itself, but asks before whether there are any, for which the host waits.

    Collectives: those of core's function; a broadcast of the number of pairs over the pipeline group and an all-reduce
    over the data and context parallel group.

    Args:
        num_pairs: scalar int32, this rank's pairs on the last pipeline stage.
    """
    finalize_model_grads(list(chunks), pg_collection=pg_collection, **options)
    pp = pg_collection.pp
    dist.broadcast(num_pairs, src=dist.get_global_rank(pp, pp.size() - 1), group=pp)
    _divide_gradients(chunks, num_pairs, pg_collection.dp_cp)


def finalize_head_gradients(chunks: Sequence[DistributedDataParallel], num_pairs: Tensor) -> None:
    """The same where only the LPC head has gradients.

    Of what megatron-core does besides, for embeddings and sequence-parallel norms, nothing is left; some of it would
    look for the gradient buffers of frozen weights.

    Collectives: over the data and context parallel group an all-reduce of the number of pairs, and on the last pipeline
    stage one of the head's gradients (a reduce-scatter with the distributed optimizer).

    Args:
        num_pairs: scalar int32, this rank's pairs, on every pipeline stage.
    """
    for chunk in chunks:
        chunk.finish_grad_sync()
    _divide_gradients(chunks, num_pairs, chunks[0].dp_cp_group)


def _divide_gradients(chunks: Sequence[DistributedDataParallel], num_pairs: Tensor, dp_cp: dist.ProcessGroup) -> None:
    dist.all_reduce(num_pairs, group=dp_cp)
    for chunk in chunks:
        chunk.scale_gradients(1.0 / num_pairs)


def _one_or_list(functions: list[Callable[..., Any]]) -> Callable[..., Any] | list[Callable[..., Any]]:
    return functions if len(functions) > 1 else functions[0]
