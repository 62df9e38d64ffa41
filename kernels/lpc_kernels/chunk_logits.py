"""The large product h W^T, a chunk of rows at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor

from lpc_kernels.large import large
from lpc_kernels.runs import row_chunks

Chunk = TypeVar("Chunk")
Started = TypeVar("Started")

_WORDS = 4096
"""Of one product on a CPU, whose library puts all words of a product once more into memory of its own."""


def overlapped(chunks: Iterable[Chunk], start: Callable[[Chunk], Started], alive: int) -> Iterator[Started]:
    """What `start` gives for each chunk, in order, `alive` of them started before the first is handed out: so that what one waits for
    arrives beneath the work of the next."""
    waiting: deque[Started] = deque()
    for chunk in chunks:
        waiting.append(start(chunk))
        if len(waiting) == alive:
            yield waiting.popleft()
    yield from waiting


class ChunkLogits:
    """Makes the logits of chunks in memory that is taken once, which a general allocator would leave in pieces."""

    def __init__(self, hidden: Tensor, words: Tensor, chunks: list[slice], alive: int = 1) -> None:
        """hidden: [N, H]. words: [V, H]. alive: chunks whose logits are needed at one time."""
        self._hidden, self._words = hidden, words
        self._pieces = row_chunks(words.size(0), _WORDS if words.device.type == "cpu" else max(1, words.size(0)))
        largest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        shape, kind = (largest, words.size(0)), (hidden.dtype, hidden.device)
        self._buffers = cycle([large(torch.empty, shape, *kind) for _ in range(min(alive, len(chunks)))])

    def __call__(self, chunk: slice) -> Tensor:
        """[C, V] h W^T of the rows of a chunk, good until `alive` more chunks have been made."""
        rows, logits = self._hidden[chunk], next(self._buffers)[: chunk.stop - chunk.start]
        for piece in self._pieces:
            torch.mm(rows, self._words[piece].t(), out=logits[:, piece])
        return logits
