"""What each query may attend to, as ranges of consecutive keys: the small form of a packing mask.

A query reads its own document up to itself, and the shared prompt of its pair. Both are consecutive tokens, and a
sliding window only moves their first token. S ranges say all that an S x S mask says.

Shape legend: R sequences of S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lpc.data.batch import PackingLayout


@dataclass(frozen=True)
class KeyRanges:
    """Keys own_start … query and prompt_start … prompt_stop - 1; [R, S] or [S] int64 each, indices in the sequence."""

    query: Tensor
    own_start: Tensor
    prompt_start: Tensor
    """Equal to `prompt_stop` where a query reads no shared prompt, or reads it as part of the first range."""
    prompt_stop: Tensor

    def of_sequence(self, sequence: int) -> KeyRanges:
        """[S] ranges of one sequence."""
        return KeyRanges(*(tensor[sequence] for tensor in vars(self).values()))

    def of_queries(self, start: int, stop: int) -> KeyRanges:
        """The ranges of the queries start … stop - 1."""
        return KeyRanges(*(tensor[..., start:stop] for tensor in vars(self).values()))

    def first_key(self) -> int:
        """The first key that any query reads. Waits for the device."""
        reads_prompt = self.prompt_start < self.prompt_stop
        first = torch.where(reads_prompt, torch.minimum(self.prompt_start, self.own_start), self.own_start)
        return int(first.min())

    def hold(self, keys: Tensor) -> Tensor:
        """[queries, keys] bool of [S] ranges and the indices of some keys: whether each query may attend to each."""
        own = (self.own_start[:, None] <= keys) & (keys <= self.query[:, None])
        prompt = (self.prompt_start[:, None] <= keys) & (keys < self.prompt_stop[:, None])
        return own | prompt


def key_ranges(packing_layout: PackingLayout, window: int | None = None) -> KeyRanges:
    """The [R, S] ranges of a packing layout, on its device, without a wait for it.

    With a window of w, keys whose position is w or more before the query's are left out. Padding reads only padding.
    """
    document_ids, position_ids = packing_layout.stacked
    index = torch.arange(document_ids.size(1), device=document_ids.device).expand_as(document_ids)
    document_start = _start_of_run(document_ids, index)
    pair_start = _start_of_run(document_ids.div(3, rounding_mode="floor"), index)
    # A response that shares its prompt continues the prompt's positions; all other documents begin at 0.
    prompt_length = (position_ids - (index - document_start)).clamp(min=0)
    own_start, prompt_start, prompt_stop = document_start, pair_start, pair_start + prompt_length
    if window is not None:
        own_start = torch.maximum(own_start, index - (window - 1))
        prompt_start = torch.maximum(prompt_start, pair_start + position_ids - (window - 1))
    prompt_start = torch.minimum(prompt_start, prompt_stop)
    # The chosen response follows its prompt: one range.
    continues = (prompt_start < prompt_stop) & (prompt_stop == own_start)
    return KeyRanges(
        query=index,
        own_start=torch.where(continues, prompt_start, own_start),
        prompt_start=torch.where(continues, prompt_stop, prompt_start),
        prompt_stop=prompt_stop,
    )


def _start_of_run(ids: Tensor, index: Tensor) -> Tensor:
    """[R, S]: where the run of equal ids begins that a token belongs to."""
    begins = torch.zeros_like(ids, dtype=torch.bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return torch.where(begins, index, 0).cummax(dim=1).values
