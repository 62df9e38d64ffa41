"""How rows lie: run after run, a run being the rows of one response; and the chunks in which they are worked off.

By response: runs are the responses in order. By pair: both responses of a pair stand together, pair after pair, so that a chunk can
hold whole pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """R runs of N rows."""

    edges: Tensor
    """[R + 1] int64: run r has rows edges[r] to edges[r + 1]; it may have none."""
    pairs: Tensor
    """[R] int64 pair of each run: the row of z that it gets."""
    rows: int
    """N."""

    @cached_property
    def host_edges(self) -> list[int]:
        """The edges as numbers; the first time a GPU is waited for."""
        return self.edges.tolist()

    @cached_property
    def host_pairs(self) -> list[int]:
        return self.pairs.tolist()

    @cached_property
    def of_rows(self) -> Tensor:
        """[N] int32 run of each row."""
        runs = torch.arange(self.pairs.numel(), dtype=torch.int32, device=self.edges.device)
        return runs.repeat_interleave(self.edges.diff(), output_size=self.rows)

    def spans(self, chunk: slice) -> list[tuple[slice, int]]:
        """The runs within a chunk of rows: where in the chunk, and the pair."""
        spans = []
        for start, stop, pair in zip(self.host_edges, self.host_edges[1:], self.host_pairs, strict=False):
            low, high = max(start, chunk.start), min(stop, chunk.stop)
            if low < high:
                spans.append((slice(low - chunk.start, high - chunk.start), pair))
        return spans

    def sums(self, values: Tensor) -> Tensor:
        """[L, N] -> [L, R], summed in fp64 (a margin is a small difference of long sums) and in row order (the same bits in every run)."""
        latents, runs = values.size(0), self.pairs.numel()
        lengths = self.edges.diff().repeat(latents)
        sums = torch.segment_reduce(values.double().flatten(), "sum", lengths=lengths, initial=0, unsafe=True)
        return sums.view(latents, runs).to(values.dtype)


def by_response(segments: Tensor, num_segments: int, num_pairs: int) -> Runs:
    """Runs of rows whose responses are `segments`; response s belongs to pair s % num_pairs.

    Raises RuntimeError for segments that are not ascending or not in [0, num_segments).
    """
    if segments.numel():
        ascending = (segments.diff() >= 0).all() & (segments[0] >= 0) & (segments[-1] < num_segments)
        # Without waiting for a GPU: it stops by itself.
        torch._assert_async(ascending, "pair_logps: segment_ids must be ascending and in [0, num_segments)")
    numbers = torch.arange(num_segments + 1, device=segments.device)
    return Runs(torch.searchsorted(segments.contiguous(), numbers), numbers[:-1] % num_pairs, segments.numel())


def by_pair(runs: Runs) -> tuple[Runs, Tensor]:
    """From the runs of 2 P responses, chosen first, to those pair after pair; and the row, [N], that comes in each place."""
    count = runs.pairs.numel()
    order = torch.arange(count, device=runs.pairs.device).view(2, -1).t().flatten()
    lengths = runs.edges.diff()[order]
    edges = torch.cat((runs.edges[:1], lengths.cumsum(0)))
    shift = (runs.edges[order] - edges[:-1]).repeat_interleave(lengths, output_size=runs.rows)
    return Runs(edges, runs.pairs[order], runs.rows), torch.arange(shift.numel(), device=shift.device) + shift


def row_chunks(rows: int, size: int) -> list[slice]:
    """Chunks of `size` rows, the last one perhaps shorter."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def pair_chunks(runs: Runs, size: int) -> list[tuple[slice, slice]]:
    """Chunks of whole pairs, as many as have at most `size` rows together, at least one: their rows, and their places among the pairs."""
    chunks = []
    ends = runs.host_edges[2::2]
    pair = row = 0
    while pair < len(ends):
        stop = pair + 1
        while stop < len(ends) and ends[stop] - row <= size:
            stop += 1
        chunks.append((slice(row, ends[stop - 1]), slice(pair, stop)))
        pair, row = stop, ends[stop - 1]
    return chunks
