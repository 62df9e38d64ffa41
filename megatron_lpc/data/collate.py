"""Preference pairs become a micro-batch: their tokens in rows, and the indices the model reads.

One pair, prompt [5, 6], chosen [7, 8], rejected [9], padding 0, in each of the layouts:

    separate   5 6 7 8      shared     5 6 7 8 9      packed, not shared   5 6 7 8 5 6 9 0
               5 6 9 0      positions  0 1 2 3 2                           0 1 2 3 0 1 2 0
                            documents  0 0 1 1 2                           1 1 1 1 2 2 2 -3

    separate, loss_index 1 2 | 5, targets 7 8 | 9, segment_ids 0 0 | 1, prompt_end 1, response_end 3 6
    shared,   loss_index 1 2 | 1, targets 7 8 | 9, segment_ids 0 0 | 1, prompt_end 1, response_end 3 4

Separate rows are padded on the right, so causal attention keeps padding out of sight of every token that counts and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

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

    Separate: 2B rows, the chosen responses in rows 0 … B-1, the rejected ones in rows B … 2B-1. Shared (`share_prompt`): B rows of
    prompt, chosen, rejected. Packed (`pack_to`): one row of so many tokens, pair after pair.
    Rows that are not packed are as long as the longest, rounded up to `pad_to_multiple` (sequence parallelism: the tensor parallel size).
    Each prompt and response must hold at least one token. h_x is read before the chosen response.
    Raises ValueError for lists of different lengths, an empty prompt or response, and more tokens than `pack_to`.
    """
    if not len(pairs) == len(sample_ids) == len(example_index):
        raise ValueError(
            f"{len(pairs)} pairs come with {len(sample_ids)} sample ids and {len(example_index)} row ids: give one each."
        )
    if not all(len(part) for pair in pairs for part in (pair.prompt, pair.chosen, pair.rejected)):
        raise ValueError("a pair has an empty prompt or response: encode_pair makes no such pair.")
    rows = _rows(pairs, share_prompt, packed=pack_to is not None)
    longest = max(sum(len(part.tokens) for part in row) for row in rows)
    width = pack_to or -(-longest // pad_to_multiple) * pad_to_multiple
    if longest > width:
        raise ValueError(f"{len(pairs)} pairs of {longest} tokens in all do not fit --pack-to {width}.")

    shape = (len(rows), width)
    tokens, positions, documents = (
        np.full(shape, pad_id, np.int64),
        np.zeros(shape, np.int64),
        np.full(shape, PADDING, np.int64),
    )
    prompt_end, response_start = np.zeros(2 * len(pairs), np.int64), np.zeros(2 * len(pairs), np.int64)
    for number, row in enumerate(rows):
        start = 0
        for part in row:
            end = start + len(part.tokens)
            tokens[number, start:end] = part.tokens
            documents[number, start:end] = part.document
            positions[number, start:end] = np.arange(part.position, part.position + len(part.tokens))
            prompt_end[list(part.prompt_of)] = number * width + end - 1
            response_start[list(part.response)] = number * width + start
            start = end

    response_length = torch.tensor([len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs])
    segment = torch.repeat_interleave(torch.arange(len(response_length)), response_length)
    # Location within its response, of every response token; the first is predicted where the prompt ends.
    place = torch.arange(len(segment)) - (response_length.cumsum(0) - response_length)[segment]
    flat, ends, starts = (
        torch.from_numpy(tokens).flatten(),
        torch.from_numpy(prompt_end),
        torch.from_numpy(response_start),
    )
    plain = not share_prompt and pack_to is None
    return PairBatch(
        tokens=torch.from_numpy(tokens),
        packing_layout=None if plain else PackingLayout(torch.from_numpy(np.stack((documents, positions)))),
        prompt_end=ends[: len(pairs)],
        response_end=starts + response_length - 1,
        loss_index=torch.where(place == 0, ends[segment], starts[segment] + place - 1),
        targets=flat[starts[segment] + place],
        segment_ids=segment,
        response_length=response_length,
        sample_ids=torch.tensor(sample_ids),
        example_index=torch.tensor(example_index),
    )


@dataclass(frozen=True)
class _Part:
    """Consecutive tokens of one document."""

    tokens: Sequence[int]
    document: int
    position: int
    """Rotary position of the first token."""
    prompt_of: tuple[int, ...] = ()
    """Responses that follow it."""
    response: tuple[int, ...] = ()
    """The response that it is."""


def _rows(pairs: Sequence[EncodedPair], share_prompt: bool, packed: bool) -> list[list[_Part]]:
    count = len(pairs)
    sequences: list[list[list[_Part]]] = []
    """Of each pair, its one shared or two separate sequences."""
    for n, pair in enumerate(pairs):
        length = len(pair.prompt)
        chosen = _Part(pair.chosen, 3 * n + 1, length, response=(n,))
        rejected = _Part(pair.rejected, 3 * n + 2, length, response=(count + n,))
        if share_prompt:
            sequences.append([[_Part(pair.prompt, 3 * n, 0, prompt_of=(n, count + n)), chosen, rejected]])
        else:
            prompts = (_Part(pair.prompt, part.document, 0, prompt_of=part.response) for part in (chosen, rejected))
            sequences.append([[prompt, response] for prompt, response in zip(prompts, (chosen, rejected), strict=True)])
    if packed:
        return [list(chain.from_iterable(chain.from_iterable(sequences)))]
    return [of_pair[n] for n in range(len(sequences[0])) for of_pair in sequences]
