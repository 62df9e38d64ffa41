"""The large product h W^T, a chunk of loss tokens at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor

from lpc_kernels.huge_pages import in_huge_pages
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import token_chunks
from lpc_kernels.triton_support import runs_on_triton

Chunk = TypeVar("Chunk")
Started = TypeVar("Started")

CPU_PIECE = 4096
"""Vocabulary entries of one product on a CPU, whose library makes a copy of all of them."""


CHUNK_SIZE, CHUNK_SIZE_ON_TRITON = 1024, 4096
"""Loss tokens of a chunk where the caller does not say."""
_ROW_MULTIPLE = 64
"""Elements that the distance of two rows is a multiple of on a GPU: 128 bytes of bf16."""


def default_chunk_size(tensor: Tensor) -> int:
    """Loss tokens of a chunk where the caller does not say.

    A GPU reads and writes the whole fp32 gradient of the LM head once per chunk, so it gets larger chunks.
    """
    return CHUNK_SIZE_ON_TRITON if runs_on_triton(tensor) else CHUNK_SIZE


def empty_logits(num_tokens: int, vocab_local: int, like: Tensor) -> Tensor:
    """[C, V] without values, for C tokens, in the dtype and on the device of `like`.

    For Triton, and so on every GPU, each row starts at a multiple of `_ROW_MULTIPLE`: with an odd distance of rows, as
    an odd vocabulary has it, the vendor's products and the kernels would move an element at a time.
    """
    row = -(-vocab_local // _ROW_MULTIPLE) * _ROW_MULTIPLE if runs_on_triton(like) else vocab_local
    return in_huge_pages(torch.empty, (num_tokens, row), like.dtype, like.device)[:, :vocab_local]


def overlapped(chunks: Iterable[Chunk], start: Callable[[Chunk], Started], in_flight: int) -> Iterator[Started]:
    """What `start` returns for each chunk, in order, with `in_flight` of them started before the first is handed out.

    So communication that `start` begins is overlapped with the work on the next chunk.
    """
    waiting: deque[Started] = deque()
    for chunk in chunks:
        waiting.append(start(chunk))
        if len(waiting) == in_flight:
            yield waiting.popleft()
    yield from waiting


def chunks_in_flight(problem: Problem) -> int:
    """Two with tensor parallelism, so that other ranks' statistics arrive during the next chunk's product; else one.

    The price is the memory of a second chunk of logits.
    """
    return 1 if problem.shard.group_name is None else 2


class ChunkLogits:
    """Makes the logits of chunks in buffers that are allocated once.

    With an allocation per chunk, the allocator's memory would become fragmented.
    """

    def __init__(self, problem: Problem, chunks: list[slice], in_flight: int = 1) -> None:
        """chunks: of loss tokens. in_flight: chunks whose logits are needed at one time."""
        self._hidden = problem.hidden
        self._weight = problem.vocab_weight
        vocab_local = self._weight.size(0)
        on_cpu = self._weight.device.type == "cpu"
        self._pieces = token_chunks(vocab_local, CPU_PIECE if on_cpu else max(1, vocab_local))
        largest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
        count = min(in_flight, len(chunks))
        self._buffers = cycle([empty_logits(largest, vocab_local, like=self._hidden) for _ in range(count)])

    def __call__(self, chunk: slice) -> Tensor:
        """[C, V] h W^T of a chunk, valid until `in_flight` more chunks have been made."""
        hidden = self._hidden[chunk]
        logits = next(self._buffers)[: chunk.stop - chunk.start]
        for piece in self._pieces:
            torch.mm(hidden, self._weight[piece].t(), out=logits[:, piece])
        return logits
