"""Episodes: pairs of one group that share a micro-batch, so that the posterior of each can read the others.

Each epoch deals the pairs of a group out to as many episodes as they fill; what is left of a group smaller than an
episode waits for a later epoch, and other pairs are left each time. Which pair a training sample is, is a pure function
of its number, as in `sampler`: nothing is stored but the pairs in the order of their groups.

Two pairs of one prompt would tell an episode less than two prompts. So the pairs of a group are sorted by a checksum of
their prompts, the circle of them is cut into as many arcs as an episode has pairs, at a place that is drawn each epoch,
and each episode takes one pair of each arc: pairs of one prompt are neighbours, and neighbours lie in one arc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_lpc.data.permutation import drawn_below, permuted, permuted_each


@dataclass(frozen=True, kw_only=True)
class EpisodeIndex:
    """The pairs of a data set by group. It holds 4 bytes per pair and 16 per group."""

    size: int
    """Pairs of an episode."""
    members: NDArray[np.int32]
    """[P] example indices, group by group, within a group sorted by a checksum of the prompt."""
    group_starts: NDArray[np.int64]
    """[G + 1] where each group begins in `members`, and where the last ends."""
    episode_starts: NDArray[np.int64]
    """[G + 1] number of the first episode of each group within an epoch, and of all episodes."""

    @classmethod
    def of(cls, groups: NDArray[np.int32], prompts: NDArray[np.uint32], size: int) -> EpisodeIndex:
        """Sort the pairs of a data set. Takes some 16 bytes per pair while it sorts.

        Args:
            groups: [P] number of each pair's group, each of 0 … G - 1 at least once.
            prompts: [P] checksum of each pair's prompt.

        Raises:
            ValueError: no group has as many pairs as an episode.
        """
        counts = np.bincount(groups)
        if counts.max(initial=0) < size:
            raise ValueError(f"no group has the {size} pairs of an episode; the largest has {counts.max(initial=0)}")
        return cls(
            size=size,
            members=np.lexsort((prompts, groups)).astype(np.int32),
            group_starts=np.concatenate([[0], counts.cumsum()]),
            episode_starts=np.concatenate([[0], (counts // size).cumsum()]),
        )

    @property
    def pairs_per_epoch(self) -> int:
        """Pairs that are in an episode in each epoch."""
        return self.size * int(self.episode_starts[-1])

    @property
    def left_out(self) -> int:
        """Pairs that are in none in each epoch: others each time, but for those of groups that are too small."""
        return len(self.members) - self.pairs_per_epoch

    @property
    def too_small(self) -> NDArray[np.int64]:
        """Numbers of the groups with fewer pairs than an episode, none of whose pairs is ever trained on."""
        return np.flatnonzero(np.diff(self.episode_starts) == 0)


class EpisodeOrder:
    """Which example each training sample is, where episodes follow each other, epoch after epoch in another order."""

    def __init__(self, index: EpisodeIndex, seed: int) -> None:
        self._index = index
        self._seed = seed

    def example_indices(self, sample_ids: Sequence[int]) -> NDArray[np.int64]:
        """Example index of each of these training samples, whose numbers count from 0 over all epochs.

        Samples `size` n … `size` n + `size` - 1 are an episode.
        """
        epochs, positions = np.divmod(np.asarray(sample_ids, np.int64), self._index.pairs_per_epoch)
        examples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            examples[of_epoch] = self._of_epoch(positions[of_epoch], int(epoch))
        return examples

    def _of_epoch(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        index = self._index
        numbers, arcs = np.divmod(positions, index.size)
        episodes = permuted(numbers, int(index.episode_starts[-1]), self._seed, epoch)
        groups = np.searchsorted(index.episode_starts, episodes, side="right") - 1
        first_episodes, first_members = index.episode_starts[groups], index.group_starts[groups]
        arc_lengths = index.episode_starts[groups + 1] - first_episodes
        group_sizes = index.group_starts[groups + 1] - first_members
        within_arcs = permuted_each(
            episodes - first_episodes, arc_lengths, groups * index.size + arcs, self._seed, epoch
        )
        cuts = drawn_below(group_sizes, groups, self._seed, epoch)
        places = (cuts + arcs * arc_lengths + within_arcs) % group_sizes
        return index.members[first_members + places].astype(np.int64)
