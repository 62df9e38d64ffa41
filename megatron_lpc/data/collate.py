"""Preference pairs become a micro-batch: their tokens in sequences, and the indices that the model reads.

One pair, prompt [5, 6], chosen [7, 8], rejected [9], padding 0, in each arrangement:

    separate   5 6 7 8      shared     5 6 7 8 9      packed, not shared   5 6 7 8 5 6 9 0
               5 6 9 0      positions  0 1 2 3 2                           0 1 2 3 0 1 2 0
                            documents  0 0 1 1 2                           1 1 1 1 2 2 2 -3

    separate, loss_index 1 2 | 5, targets 7 8 | 9, segment_ids 0 0 | 1, prompt_end 1, response_end 3 6
    shared,   loss_index 1 2 | 1, targets 7 8 | 9, segment_ids 0 0 | 1, prompt_end 1, response_end 3 4

Separate sequences are padded on the right, so causal attention keeps padding out of sight of every token that counts
and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_lpc.data.batch import PADDING, PackingLayout, PairBatch
from megatron_lpc.data.encode import EncodedPair


def collate(
    pairs: Sequence[EncodedPair],
    sample_ids: Sequence[int],
    example_index: Sequence[int],
    *,
    pad_id: int,
    pad_to_multiple: int = 1,
    share_prompt: bool = False,
    pack_to: int | None = None,
) -> PairBatch:
    """B pairs as one micro-batch.

    Separate: 2B sequences, the chosen responses in 0 … B-1, the rejected ones in B … 2B-1. Shared (`share_prompt`):
    B sequences of prompt, chosen, rejected. Packed (`pack_to`): one sequence of so many tokens, pair after pair.
    h_x is read before the chosen response.

    Args:
        pad_to_multiple: sequences that are not packed are as long as the longest, rounded up to this (sequence
            parallelism: the tensor parallel size).

    Raises:
        ValueError: the lists differ in length, a prompt or response is empty, or there are more than `pack_to` tokens.
    """
    _check_pairs(pairs, sample_ids, example_index)
    sequences = _arrange(pairs, share_prompt, packed=pack_to is not None)
    longest = max(sum(len(part.tokens) for part in sequence) for sequence in sequences)
    seq_len = pack_to or -(-longest // pad_to_multiple) * pad_to_multiple
    if longest > seq_len:
        raise ValueError(f"{len(pairs)} pairs of {longest} tokens in all do not fit --pack-to {seq_len}.")

    filled = _fill(sequences, seq_len, pad_id, num_pairs=len(pairs))
    response_length = torch.tensor([len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs])
    segment_ids = torch.repeat_interleave(torch.arange(len(response_length)), response_length)
    response_offset = response_length.cumsum(0) - response_length
    position_in_response = torch.arange(len(segment_ids)) - response_offset[segment_ids]
    token_index = filled.response_start[segment_ids] + position_in_response
    # The first token of a response is predicted at the end of its prompt, each other one at the token before it.
    loss_index = torch.where(position_in_response == 0, filled.prompt_end[segment_ids], token_index - 1)
    is_plain = not share_prompt and pack_to is None
    return PairBatch(
        tokens=filled.tokens,
        packing_layout=None if is_plain else filled.packing_layout,
        prompt_end=filled.prompt_end[: len(pairs)],
        response_end=filled.response_start + response_length - 1,
        loss_index=loss_index,
        targets=filled.tokens.flatten()[token_index],
        segment_ids=segment_ids,
        response_length=response_length,
        sample_ids=torch.tensor(sample_ids),
        example_index=torch.tensor(example_index),
    )


def _check_pairs(pairs: Sequence[EncodedPair], sample_ids: Sequence[int], example_index: Sequence[int]) -> None:
    if not len(pairs) == len(sample_ids) == len(example_index):
        raise ValueError(
            f"{len(pairs)} pairs come with {len(sample_ids)} sample ids and {len(example_index)} example indices: "
            "give one each."
        )
    if any(0 in pair.lengths for pair in pairs):
        raise ValueError("a pair has an empty prompt or response: encode_pair makes no such pair.")


@dataclass(frozen=True)
class _Part:
    """Consecutive tokens of one document: a prompt or a response."""

    tokens: Sequence[int]
    document: int
    position: int
    """Rotary position of the first token."""
    prompt_of: tuple[int, ...] = ()
    """Numbers of the responses that follow it, where it is a prompt."""
    response: int | None = None
    """Its number, where it is a response."""


def _arrange(pairs: Sequence[EncodedPair], share_prompt: bool, packed: bool) -> list[list[_Part]]:
    """The parts of each sequence of the batch."""
    of_pairs = [_sequences_of(pair, number, len(pairs), share_prompt) for number, pair in enumerate(pairs)]
    if packed:
        return [list(chain.from_iterable(chain.from_iterable(of_pairs)))]
    if share_prompt:
        return [shared for (shared,) in of_pairs]
    return [with_chosen for with_chosen, _ in of_pairs] + [with_rejected for _, with_rejected in of_pairs]


def _sequences_of(pair: EncodedPair, number: int, num_pairs: int, share_prompt: bool) -> list[list[_Part]]:
    """The one shared or two separate sequences of pair `number` of `num_pairs`."""
    length = len(pair.prompt)
    chosen = _Part(pair.chosen, 3 * number + 1, length, response=number)
    rejected = _Part(pair.rejected, 3 * number + 2, length, response=num_pairs + number)
    if share_prompt:
        prompt = _Part(pair.prompt, 3 * number, 0, prompt_of=(number, num_pairs + number))
        return [[prompt, chosen, rejected]]
    prompt_of_chosen = _Part(pair.prompt, chosen.document, 0, prompt_of=(number,))
    prompt_of_rejected = _Part(pair.prompt, rejected.document, 0, prompt_of=(num_pairs + number,))
    return [[prompt_of_chosen, chosen], [prompt_of_rejected, rejected]]


@dataclass(frozen=True)
class _Filled:
    """The sequences as tensors, and where their parts lie."""

    tokens: Tensor
    """[R, S] token ids."""
    packing_layout: PackingLayout
    prompt_end: Tensor
    """[2B] flat index of the last token of each response's prompt."""
    response_start: Tensor
    """[2B] flat index of the first token of each response."""


def _fill(sequences: list[list[_Part]], seq_len: int, pad_id: int, num_pairs: int) -> _Filled:
    shape = (len(sequences), seq_len)
    tokens = np.full(shape, pad_id, np.int64)
    document_ids = np.full(shape, PADDING, np.int64)
    position_ids = np.zeros(shape, np.int64)
    prompt_end: NDArray[np.int64] = np.zeros(2 * num_pairs, np.int64)
    response_start: NDArray[np.int64] = np.zeros(2 * num_pairs, np.int64)
    for number, sequence in enumerate(sequences):
        start = 0
        for part in sequence:
            length = len(part.tokens)
            end = start + length
            tokens[number, start:end] = part.tokens
            document_ids[number, start:end] = part.document
            position_ids[number, start:end] = np.arange(part.position, part.position + length)
            if part.response is None:
                prompt_end[list(part.prompt_of)] = number * seq_len + end - 1
            else:
                response_start[part.response] = number * seq_len + start
            start = end
    return _Filled(
        tokens=torch.from_numpy(tokens),
        packing_layout=PackingLayout.of(torch.from_numpy(document_ids), torch.from_numpy(position_ids)),
        prompt_end=torch.from_numpy(prompt_end),
        response_start=torch.from_numpy(response_start),
    )
