"""One pass of several micro-batches through the pipeline, with or without gradient.

megatron-core's pipeline schedules (none, 1F1B, interleaved) do the work; this module tells them what a forward pass is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.model import LatentQuery, PairScores, finalize_head_gradients

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


def train_head_pass(
    chunks: Sequence[Any], batches: list[PairBatch], query: LatentQuery, micro_batch_loss: MicroBatchLoss
) -> list[Metrics]:
    """`train_pass` of a frozen backbone: a forward-only pipeline, and on its last stage a backward pass of the head.

    That backward pass follows the micro-batch's forward pass at once, so its memory is that of one micro-batch.

    Collectives: the pipeline's sends and receives over the pipeline group; those of `finalize_head_gradients`.
    """

    def step(batches_of_chunk: Iterator[PairBatch], chunk: nn.Module) -> tuple[Any, Callable[..., Any]]:
        batch = next(batches_of_chunk)

        def loss(scores: PairScores, non_loss_data: bool) -> Metrics:
            total, metrics = micro_batch_loss(batch, scores)
            total.backward()
            return metrics

        return chunk(batch, query), loss

    with _without_dropout(chunks):
        parts = _run_pipeline(step, chunks, batches, forward_only=True, collect_non_loss_data=True)
    pairs = torch.full((), sum(batch.num_pairs for batch in batches), dtype=torch.int, device=batches[0].tokens.device)
    finalize_head_gradients(chunks, pairs)
    return parts


def score_pass(chunks: Sequence[nn.Module], batches: list[PairBatch], query: LatentQuery) -> list[PairScores]:
    """Forward without gradient.

    Collectives: the pipeline's sends and receives over the pipeline group.

    Returns:
        The scores of each micro-batch, on the last pipeline stage; empty elsewhere.
    """

    def step(batches_of_chunk: Iterator[PairBatch], chunk: nn.Module) -> tuple[Any, Callable[..., Any]]:
        return chunk(next(batches_of_chunk), query), lambda scores, non_loss_data: scores

    with _without_dropout(chunks), torch.no_grad():
        return _run_pipeline(step, chunks, batches, forward_only=True, collect_non_loss_data=True)


@contextmanager
def _without_dropout(chunks: Sequence[nn.Module]) -> Iterator[None]:
    for chunk in chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk in chunks:
            chunk.train()


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
