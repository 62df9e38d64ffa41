"""The large product h W^T, a chunk of rows at a time."""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor


class ChunkLogits:
    """Makes the logits of chunks in memory that is taken once, which a general allocator would leave in pieces."""

    def __init__(self, hidden: Tensor, words: Tensor, chunks: list[slice], alive: int = 1) -> None:
        """hidden: [N, H]. words: [V, H]. alive: chunks whose logits are needed at one time."""
        self._hidden, self._words = hidden, words
        largest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        self._buffers = cycle([hidden.new_empty((largest, words.size(0))) for _ in range(min(alive, len(chunks)))])

    def __call__(self, chunk: slice) -> Tensor:
        """[C, V] h W^T of the rows of a chunk, good until `alive` more chunks have been made."""
        return torch.mm(self._hidden[chunk], self._words.t(), out=next(self._buffers)[: chunk.stop - chunk.start])
