"""How loss tokens are ordered, and the chunks to compute them in.

They lie segment after segment, a segment being the loss tokens of one response. In response order
the segments are the responses in their order. In pair order both responses of a pair stand together, pair after pair,
so that a chunk can hold whole pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """S segments of N loss tokens."""

    cu_seqlens: Tensor
    """[S + 1] int64: segment s has loss tokens cu_seqlens[s] to cu_seqlens[s + 1]; it may have none."""
    pair_of_segment: Tensor
    """[S] int64 pair of each segment: the latent z[:, pair] that it gets."""
    num_tokens: int
    """N."""

    @cached_property
    def host_cu_seqlens(self) -> list[int]:
        """The offsets as Python numbers; the first access waits for a GPU."""
        return self.cu_seqlens.tolist()

    @cached_property
    def host_pairs(self) -> list[int]:
        """The pair of each segment as Python numbers; the first access waits for a GPU."""
        return self.pair_of_segment.tolist()

    @cached_property
    def pair_lengths(self) -> list[int]:
        """Loss tokens of each pair, for segments in response order, two per pair. Waits for a GPU unless the offsets
        are known."""
        offsets = self.host_cu_seqlens
        lengths = [end - start for start, end in pairwise(offsets)]
        num_pairs = len(lengths) // 2
        return [chosen + rejected for chosen, rejected in zip(lengths[:num_pairs], lengths[num_pairs:], strict=True)]

    @cached_property
    def segment_ids(self) -> Tensor:
        """[N] int32 segment of each loss token."""
        ids = torch.arange(self.pair_of_segment.numel(), dtype=torch.int32, device=self.cu_seqlens.device)
        return self.repeat(ids)

    def repeat(self, values: Tensor) -> Tensor:
        """[..., S] values of segments -> [..., N] of their loss tokens."""
        return values.repeat_interleave(self.cu_seqlens.diff(), dim=-1, output_size=self.num_tokens)

    def within(self, chunk: slice) -> list[tuple[slice, int]]:
        """The segments in a chunk of loss tokens: where they are in the chunk, and their pair."""
        found = []
        starts, ends = self.host_cu_seqlens[:-1], self.host_cu_seqlens[1:]
        for start, end, pair in zip(starts, ends, self.host_pairs, strict=True):
            low, high = max(start, chunk.start), min(end, chunk.stop)
            if low < high:
                found.append((slice(low - chunk.start, high - chunk.start), pair))
        return found

    def sums(self, values: Tensor) -> Tensor:
        """[L, N] -> [L, S] sums over the tokens of each segment, in token order, so two runs give the same bits.

        They are summed in fp64: a margin is a small difference of long sums.
        """
        num_latents, num_segments = values.size(0), self.pair_of_segment.numel()
        lengths = self.cu_seqlens.diff().repeat(num_latents)
        sums = torch.segment_reduce(values.double().flatten(), "sum", lengths=lengths, initial=0, unsafe=True)
        return sums.view(num_latents, num_segments).to(values.dtype)


def segments_in_response_order(segment_ids: Tensor, num_segments: int, num_pairs: int) -> Segments:
    """Segments of loss tokens whose responses are `segment_ids`; response s belongs to pair s % num_pairs.

    Raises RuntimeError for segment ids that are not ascending or not in [0, num_segments).
    """
    if segment_ids.numel():
        in_range = (segment_ids[0] >= 0) & (segment_ids[-1] < num_segments)
        ascending = (segment_ids.diff() >= 0).all() & in_range
        # Does not wait for a GPU: the assertion runs there.
        torch._assert_async(ascending, "pair_logps: segment_ids must be ascending and in [0, num_segments)")
    numbers = torch.arange(num_segments + 1, device=segment_ids.device)
    cu_seqlens = torch.searchsorted(segment_ids.contiguous(), numbers)
    return Segments(cu_seqlens, numbers[:-1] % num_pairs, segment_ids.numel())


def segments_in_pair_order(segments: Segments) -> tuple[Segments, Tensor]:
    """The segments in pair order, and the order of their loss tokens: [N] int64, which token comes at each position.

    segments: those of 2 P responses in response order, the chosen ones first.
    """
    device = segments.pair_of_segment.device
    order = torch.arange(segments.pair_of_segment.numel(), device=device).view(2, -1).t().flatten()
    lengths = segments.cu_seqlens.diff()[order]
    cu_seqlens = torch.cat((segments.cu_seqlens[:1], lengths.cumsum(0)))
    in_pair_order = Segments(cu_seqlens, segments.pair_of_segment[order], segments.num_tokens)
    shift = in_pair_order.repeat(segments.cu_seqlens[order] - cu_seqlens[:-1])
    return in_pair_order, torch.arange(shift.numel(), device=device) + shift


class PairChunk(NamedTuple):
    """Some pairs, in pair order."""

    tokens: slice
    """Their loss tokens."""
    pairs: slice

    def segments(self, whole: Segments) -> Segments:
        """The segments of these pairs, the first loss token of the chunk being token 0."""
        first, last = 2 * self.pairs.start, 2 * self.pairs.stop
        return Segments(
            cu_seqlens=whole.cu_seqlens[first : last + 1] - self.tokens.start,
            pair_of_segment=whole.pair_of_segment[first:last],
            num_tokens=self.tokens.stop - self.tokens.start,
        )


def token_chunks(num_tokens: int, size: int) -> list[slice]:
    """Chunks of `size` tokens, the last one perhaps shorter."""
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def pair_chunks(pair_lengths: list[int], size: int) -> list[PairChunk]:
    """Chunks of whole pairs: as many as have at most `size` loss tokens together, at least one.

    pair_lengths: loss tokens of each pair.
    """
    chunks = []
    pair_ends = list(accumulate(pair_lengths))
    pair = token = 0
    while pair < len(pair_ends):
        stop = pair + 1
        while stop < len(pair_ends) and pair_ends[stop] - token <= size:
            stop += 1
        chunks.append(PairChunk(slice(token, pair_ends[stop - 1]), slice(pair, stop)))
        pair, token = stop, pair_ends[stop - 1]
    return chunks
