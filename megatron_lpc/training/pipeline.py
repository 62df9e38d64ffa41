"""One pass of several micro-batches through the pipeline, with or without gradient.

megatron-core's pipeline schedules (none, 1F1B, interleaved) do the work; this module tells them what a forward pass is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.model import LatentQuery, PairScores

Metrics = dict[str, Tensor]
MicroBatchLoss = Callable[[PairBatch, PairScores], tuple[Tensor, Metrics]]


def train_pass(
    chunks: Sequence[nn.Module], batches: list[PairBatch], query: LatentQuery, micro_batch_loss: MicroBatchLoss
) -> list[Metrics]:
    """Forward and backward; gradients are those of the mean of the loss over all pairs of all ranks.

    Collectives: the pipeline's sends and receives over the pipeline group; `finalize_model_grads` (gradients over the
    data parallel group, sequence-parallel weights over the tensor parallel group, tied embeddings over first and last
    stage, the number of pairs over the data parallel and the pipeline group).

    Args:
        chunks: this rank's model chunks, wrapped for data parallelism.
        batches: this rank's micro-batches, on its device.
        micro_batch_loss: given a micro-batch and its scores, the SUM of the loss over its pairs, and what to report.

    Returns:
        What the loss reported for each micro-batch, on the last pipeline stage; empty elsewhere.
    """

    def step(batches_of_chunk: Iterator[PairBatch], chunk: nn.Module) -> tuple[Any, Callable[..., Any]]:
        batch = next(batches_of_chunk)

        def loss(scores: PairScores) -> tuple[Tensor, Tensor, Metrics]:
            total, metrics = micro_batch_loss(batch, scores)
            pairs = torch.full((), batch.num_pairs, dtype=torch.int, device=total.device)
            return total, pairs, metrics

        return chunk(batch, query), loss

    return _run_pipeline(step, chunks, batches, forward_only=False)


def score_pass(chunks: Sequence[nn.Module], batches: list[PairBatch], query: LatentQuery) -> list[PairScores]:
    """Forward without gradient.

    Collectives: the pipeline's sends and receives over the pipeline group.

    Returns:
        The scores of each micro-batch, on the last pipeline stage; empty elsewhere.
    """

    def step(batches_of_chunk: Iterator[PairBatch], chunk: nn.Module) -> tuple[Any, Callable[..., Any]]:
        return chunk(next(batches_of_chunk), query), lambda scores, non_loss_data: scores

    for chunk in chunks:
        chunk.eval()
    with torch.no_grad():
        scores = _run_pipeline(step, chunks, batches, forward_only=True, collect_non_loss_data=True)
    for chunk in chunks:
        chunk.train()
    return scores


def _run_pipeline(
    step: Callable[..., Any], chunks: Sequence[nn.Module], batches: list[PairBatch], **options: Any
) -> list[Any]:
    iterators = [iter(batches) for _ in chunks]
    is_interleaved = len(chunks) > 1
    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if is_interleaved else iterators[0],
        model=list(chunks) if is_interleaved else chunks[0],
        num_microbatches=len(batches),
        # Read only where all micro-batches have one shape: packed ones, and those of interleaved stages. Elsewhere
        # shapes travel with the tensors (`variable_seq_lengths`).
        seq_length=batches[0].tokens.size(1),
        micro_batch_size=batches[0].tokens.size(0),
        **options,
    )
