"""How a run lays pairs out in micro-batches: padded or packed, with separate or shared prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.data.packing import pack

Lengths = TypeVar("Lengths", NDArray[np.int64], Tensor)


@dataclass(frozen=True, kw_only=True)
class MicroBatchPlanner:
    """The options of a run that decide which pairs meet in a micro-batch and where their tokens lie."""

    pad_id: int
    micro_batch_size: int
    """Pairs of a micro-batch; not read where pairs are packed."""
    pad_to_multiple: int = 1
    multiple: int = 1
    """Micro-batches of a step are a multiple of this, and if it is above 1 of one width, as the interleaved pipeline schedule needs."""
    share_prompt: bool = False
    pack_to: int | None = None
    """Tokens of the one row of a micro-batch; None: rows are not packed."""
    attention_cost: float = 0.0
    """What an attended query-key pair costs beside a token's passage through all weights; packing balances their sum."""

    @property
    def unit(self) -> int:
        """A rank's pairs of a step are a multiple of this."""
        return self.multiple * (1 if self.pack_to else self.micro_batch_size)

    def places(self, lengths: NDArray[np.int64], dp_size: int = 1) -> list[list[int]]:
        """Micro-batches of pairs with `lengths` [P, 3], as ascending places 0 … P-1; number m is for rank m mod dp_size.

        Pairs of like length share a padded micro-batch, the longest first, so that little is padding and the ranks' micro-batches of one
        time are alike; packed ones all cost nearly the same.

        Raises ValueError when the pairs are not made of whole micro-batches, as many for every rank, or one exceeds `pack_to`.
        """
        if self.pack_to is None:
            size, unit = self.micro_batch_size, self.micro_batch_size * dp_size
            if len(lengths) % unit:
                raise ValueError(
                    f"--global-batch-size {len(lengths)} is not a multiple of --micro-batch-size {size} "
                    f"times data parallel size {dp_size}. Change one of them."
                )
            order = np.argsort(-row_width(lengths, self.share_prompt), kind="stable").tolist()
            return [sorted(order[start : start + size]) for start in range(0, len(order), size)]
        self.check(lengths)
        tokens = pair_tokens(lengths, self.share_prompt)
        costs = tokens + self.attention_cost * attended(lengths, self.share_prompt)
        return pack(tokens.tolist(), costs.tolist(), self.pack_to, self.multiple * dp_size)

    def check(self, lengths: NDArray[np.int64]) -> None:
        """Raise ValueError when one of the pairs does not fit a packed row."""
        tokens = pair_tokens(lengths, self.share_prompt)
        if self.pack_to is not None and tokens.max() > self.pack_to:
            raise ValueError(
                f"--pack-to {self.pack_to}: pair {tokens.argmax()} of {len(tokens)} (from 0) has {tokens.max()} tokens with both "
                "responses; raise it to that, or lower --max-length"
            )

    def batches(
        self, pairs: Sequence[Sequence[EncodedPair]], ids: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
    ) -> list[PairBatch]:
        """The micro-batches of a step, with their pairs' sample ids and rows in the data set."""
        made = [
            collate(
                *of_batch,
                pad_id=self.pad_id,
                pad_to_multiple=self.pad_to_multiple,
                share_prompt=self.share_prompt,
                pack_to=self.pack_to,
            )
            for of_batch in zip(pairs, ids, rows, strict=True)
        ]
        if self.multiple == 1:
            return made
        width = max(batch.tokens.size(1) for batch in made)
        return [batch.widened(width, self.pad_id) for batch in made]


def pair_tokens(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] tokens that pairs take in a row; lengths: [P, 3] of prompt, chosen, rejected."""
    return lengths @ np.array([1 if share_prompt else 2, 1, 1])


def row_width(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] tokens of the longest row of each pair, where rows are not packed."""
    return pair_tokens(lengths, share_prompt) if share_prompt else lengths[:, 0] + lengths[:, 1:].max(1)


def attended(lengths: NDArray[np.int64], share_prompt: bool) -> NDArray[np.int64]:
    """[P] query-key pairs that causal attention lets through, without a window."""
    prompt, chosen, rejected = lengths.T
    whole = causal_pairs(prompt + chosen) + causal_pairs(prompt + rejected)
    return whole - causal_pairs(prompt) if share_prompt else whole


def causal_pairs(length: Lengths, window: int | None = None) -> Lengths:
    """Query-key pairs of causal attention in sequences of these lengths, each query reading `window` tokens at most, itself included."""
    beyond = (length - window).clip(min=0) if window else 0 * length
    return (length * (length + 1) - beyond * (beyond + 1)) // 2
