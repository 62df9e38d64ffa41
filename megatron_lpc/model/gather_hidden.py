"""From all hidden states of a micro-batch to those where the method looks."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.pair_hidden import PairHidden


def hidden_of_pairs(hidden: Tensor, batch: PairBatch, sequence_shards: dist.ProcessGroup | None) -> PairHidden:
    """The hidden states of loss tokens and the summaries.

    Collectives: an all-gather of the sequence shards, if there are any (backward: each rank keeps its shard).

    Args:
        hidden: [S, R, H], megatron-core's order, or this rank's shard [S / tp, R, H] of it.
        sequence_shards: the ranks that hold the shards under sequence parallelism; None: `hidden` is whole.
    """
    if sequence_shards is not None:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=sequence_shards)
    length, num_sequences, hidden_size = hidden.shape
    flat = hidden.reshape(length * num_sequences, hidden_size)

    def at(index: Tensor) -> Tensor:
        """Hidden states at flat indices sequence * S + position."""
        return flat[index % length * num_sequences + index // length]

    return PairHidden(
        response_end=at(batch.response_end),
        prompt_end=at(batch.prompt_end),
        loss_tokens=at(batch.loss_index),
    )
