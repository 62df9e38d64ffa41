"""Preference pairs become a micro-batch: one padded row per response, and the indices the model reads.

Example, B = 1, prompt [5, 6], chosen [7, 8], rejected [9], padding 0:

    tokens        5 6 7 8      loss_index   1 2 | 5      prompt_end    1
                  5 6 9 0      loss_target  7 8 | 9      response_end  3 6
    flat index    0 1 2 3      loss_segment 0 0 | 1
                  4 5 6 7

Rows are padded on the right, so causal attention keeps padding out of sight of every token that counts and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.encode import EncodedPair


def collate(
    pairs: Sequence[EncodedPair], sample_ids: Sequence[int], row_ids: Sequence[int], *, pad_id: int, pad_to_multiple: int = 1
) -> PairBatch:
    """B pairs as 2B rows, the chosen responses in rows 0 … B-1, the rejected ones in rows B … 2B-1.

    Rows are as long as the longest, rounded up to `pad_to_multiple` (sequence parallelism: the tensor parallel size).
    Each prompt and response must hold at least one token. h_x is read in the chosen row; the rejected row has the same.
    """
    prompts = [pair.prompt for pair in pairs] * 2
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    response_length = torch.tensor([len(response) for response in responses])
    if not len(pairs) == len(sample_ids) == len(row_ids):
        raise ValueError(f"{len(pairs)} pairs come with {len(sample_ids)} sample ids and {len(row_ids)} row ids: give one each.")
    if not (prompt_length.all() and response_length.all()):
        raise ValueError("a pair has an empty prompt or response: encode_pair makes no such pair.")

    longest = int((prompt_length + response_length).max())
    width = -(-longest // pad_to_multiple) * pad_to_multiple
    rows = np.full((len(prompts), width), pad_id, dtype=np.int64)
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        row[: len(prompt)] = prompt
        row[len(prompt) : len(prompt) + len(response)] = response
    tokens = torch.from_numpy(rows)

    prompt_end = torch.arange(len(prompts)) * width + prompt_length - 1
    loss_segment = torch.repeat_interleave(torch.arange(len(prompts)), response_length)
    # Place within its response, of every response token.
    offset = torch.arange(len(loss_segment)) - (response_length.cumsum(0) - response_length)[loss_segment]
    loss_index = prompt_end[loss_segment] + offset
    return PairBatch(
        tokens=tokens,
        position_ids=torch.arange(width).expand_as(tokens).contiguous(),
        prompt_end=prompt_end[: len(pairs)],
        response_end=prompt_end + response_length,
        loss_index=loss_index,
        loss_target=tokens.flatten()[loss_index + 1],
        loss_segment=loss_segment,
        response_length=response_length,
        sample_ids=torch.tensor(sample_ids),
        row_ids=torch.tensor(row_ids),
    )
