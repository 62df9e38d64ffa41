"""How a run lays pairs out in micro-batches: padded or packed, with separate or shared prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.collate import collate
from megatron_lpc.data.costs import pair_tokens, query_key_pairs, sequence_tokens
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.data.episodes import EpisodeIndex
from megatron_lpc.data.packing import pack

_BLOCK = 1 << 20
"""Pairs whose lengths are looked at together."""


@dataclass(frozen=True)
class IndexedPair:
    """A pair and its numbers."""

    pair: EncodedPair
    sample_id: int
    """Number among all training samples."""
    example_index: int
    """Number in the data set."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchPlanner:
    """The options of a run that decide which pairs share a micro-batch and how they lie in it."""

    pad_id: int
    micro_batch_size: int
    """Pairs per micro-batch; not read where pairs are packed."""
    pad_to_multiple: int = 1
    """Padded sequences are as long as the longest, rounded up to this."""
    micro_batch_multiple: int = 1
    """The micro-batches of a rank's step are a multiple of this. Where it is above 1 they all have one sequence length,
    as the interleaved pipeline schedule needs."""
    share_prompt: bool = False
    pack_to: int | None = None
    """Tokens of the packed sequence that is a micro-batch by itself; None: pairs are not packed."""
    attention_cost: float = 0.0
    """Cost of a query-key pair in units of a token's passage through all weights; packing balances their sum."""
    group_numbers: Mapping[str, int] | None = None
    """Number of each known group, from 1, for `PairBatch.group_ids`; None where the model reads no groups."""
    pin_memory: bool = False
    """Whether batches are made in pinned memory, from which a GPU copies while the host goes on."""

    @property
    def pairs_multiple(self) -> int:
        """A rank's pairs of a step are a multiple of this."""
        smallest_micro_batch = 1 if self.pack_to else self.micro_batch_size
        return self.micro_batch_multiple * smallest_micro_batch

    def plan(self, lengths: NDArray[np.int64], dp_size: int = 1, episode_size: int = 1) -> list[list[int]]:
        """Which pairs of a step share a micro-batch. Micro-batch m belongs to data parallel rank m mod dp_size.

        Pairs of like length share a padded micro-batch, the longest first, so that little is padding and the ranks'
        micro-batches of one moment are alike; packed micro-batches all cost nearly the same.

        Args:
            lengths: [P, 3] tokens of the prompt, chosen and rejected of each pair.
            episode_size: so many pairs in succession share a micro-batch; a divisor of `micro_batch_size` where pairs
                are not packed.

        Returns:
            Micro-batches, each as ascending positions 0 … P-1 in `lengths`: episode after episode.

        Raises:
            ValueError: the pairs are not made of whole micro-batches, as many for every rank, or one exceeds `pack_to`.
        """
        if self.pack_to is None:
            return self._plan_padded(lengths, dp_size, episode_size)
        self.check_fit(lengths)
        tokens = pair_tokens(lengths, self.share_prompt)
        costs = tokens + self.attention_cost * query_key_pairs(lengths, self.share_prompt)
        bins = pack(
            tokens.reshape(-1, episode_size).sum(1).tolist(),
            costs.reshape(-1, episode_size).sum(1).tolist(),
            self.pack_to,
            self.micro_batch_multiple * dp_size,
        )
        return [_pairs_of(episodes, episode_size) for episodes in bins]

    def check_fit(self, lengths: NDArray[np.integer[Any]]) -> None:
        """Check that each pair fits a packed sequence.

        Args:
            lengths: as `plan` takes it; read in blocks, since it may be a file.

        Raises:
            ValueError: one does not.
        """
        if self.pack_to is None:
            return
        for start in range(0, len(lengths), _BLOCK):
            tokens = pair_tokens(lengths[start : start + _BLOCK], self.share_prompt)
            if tokens.max() > self.pack_to:
                raise ValueError(
                    f"--pack-to {self.pack_to}: pair {start + tokens.argmax()} of {len(lengths)} (from 0) has "
                    f"{tokens.max()} tokens with both responses; raise it to that, or lower --max-length"
                )

    def collate(self, micro_batches: Sequence[Sequence[IndexedPair]]) -> list[PairBatch]:
        """The tensors of a step's micro-batches."""
        batches = [self._collate_one(pairs) for pairs in micro_batches]
        if self.micro_batch_multiple > 1:
            seq_len = max(batch.tokens.size(1) for batch in batches)
            batches = [batch.padded_to(seq_len, self.pad_id) for batch in batches]
        return [batch.pinned() for batch in batches] if self.pin_memory else batches

    def check_episodes_fit(self, lengths: NDArray[np.int32], episodes: EpisodeIndex) -> None:
        """Check that the longest pairs of each group fit a packed sequence as one episode. 16 bytes per pair.

        Args:
            lengths: as `plan` takes it, of the whole data set.

        Raises:
            ValueError: an episode might not.
        """
        if self.pack_to is None:
            return
        tokens = pair_tokens(lengths, self.share_prompt)[episodes.members]
        for start, end in pairwise(episodes.group_starts.tolist()):
            most = int(np.sort(tokens[start:end])[-episodes.size :].sum())
            if end - start >= episodes.size and most > self.pack_to:
                raise ValueError(
                    f"--pack-to {self.pack_to}: an episode of {episodes.size} pairs of one group can have {most} "
                    "tokens; raise it to that, or lower --max-length or --posterior-context"
                )

    def _plan_padded(self, lengths: NDArray[np.int64], dp_size: int, episode_size: int) -> list[list[int]]:
        size = self.micro_batch_size
        if len(lengths) % (size * dp_size):
            raise ValueError(
                f"--global-batch-size {len(lengths)} is not a multiple of --micro-batch-size {size} "
                f"times data parallel size {dp_size}. Change one of them."
            )
        tokens = sequence_tokens(lengths, self.share_prompt).reshape(-1, episode_size).max(1)
        longest_first = np.argsort(-tokens, kind="stable").tolist()
        share = size // episode_size
        return [
            _pairs_of(sorted(longest_first[start : start + share]), episode_size)
            for start in range(0, len(longest_first), share)
        ]

    def _collate_one(self, pairs: Sequence[IndexedPair]) -> PairBatch:
        batch = collate(
            [indexed.pair for indexed in pairs],
            [indexed.sample_id for indexed in pairs],
            [indexed.example_index for indexed in pairs],
            pad_id=self.pad_id,
            pad_to_multiple=self.pad_to_multiple,
            share_prompt=self.share_prompt,
            pack_to=self.pack_to,
        )
        if self.group_numbers is None:
            return batch
        numbers = [self.group_numbers.get(str(indexed.pair.group), 0) for indexed in pairs]
        return replace(batch, group_ids=torch.tensor(numbers))


def _pairs_of(episodes: Sequence[int], size: int) -> list[int]:
    """Positions of the pairs of some episodes."""
    return [episode * size + place for episode in episodes for place in range(size)]
