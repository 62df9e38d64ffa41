"""What one call of `pair_logps` is to compute: made once after validation, and read by every algorithm and backend.

Letters of shapes in this folder:

| letter | size |
|---|---|
| N | loss tokens of the call |
| C | loss tokens of a chunk |
| S | segments: the responses, each a run of loss tokens |
| P | pairs of the call, each with its own latents z[:, pair]; 1 where all pairs share the latents |
| B | pairs in one call of the pair loss |
| L | latents of each pair; 1 without z |
| H | hidden size |
| V | token ids in this rank's shard of the vocabulary, without padding (V_local: with padding) |

Softmax statistics are [3 or 4, L, N] or [3 or 4, L, C], see `softmax_stats.py`: the fourth is for the entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lpc_kernels.pair_logps.segments import Segments
from lpc_kernels.pair_logps.vocab_shard import VocabShard, latent_biases

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""From [L, 2, B] summed log-probs of B pairs, chosen before rejected, and the [B] int64 indices of the pairs, to their
[B] losses."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Validated inputs of a call."""

    hidden: Tensor
    """[N, H]."""
    lm_head_weight: Tensor
    """[V_local, H], padding last."""
    z: Tensor | None
    """[L, P, H]."""
    targets: Tensor
    """[N] int64 token ids."""
    segments: Segments
    shard: VocabShard
    chunk_size: int
    with_entropy: bool
    main_grad: Tensor | None = None
    """fp32 (fp64) buffer that the LM head's gradient is added to."""
    main_grad_only: bool = False
    """Nobody reads what autograd gets for the LM head beside `main_grad`."""
    pair_loss: PairLoss | None = None

    @property
    def num_tokens(self) -> int:
        return self.hidden.size(0)

    @property
    def num_latents(self) -> int:
        return 1 if self.z is None else self.z.size(0)

    @property
    def shares_latents(self) -> bool:
        """Whether z is the same for all loss tokens."""
        return self.z is not None and self.z.size(1) == 1

    @property
    def stats_shape(self) -> tuple[int, int, int]:
        """[3 or 4, L, N] of the softmax statistics."""
        return 4 if self.with_entropy else 3, self.num_latents, self.num_tokens

    @property
    def stats_dtype(self) -> torch.dtype:
        return torch.promote_types(self.hidden.dtype, torch.float32)

    @property
    def vocab_weight(self) -> Tensor:
        """[V, H] weight of the LM head without padding."""
        return self.lm_head_weight[: self.shard.vocab_local]

    @cached_property
    def bias(self) -> Tensor | None:
        """[L, P, V] what each latent adds to the logits of its pair."""
        return latent_biases(self.z, self.vocab_weight)


class Scores(NamedTuple):
    """What an algorithm returns."""

    token_logps: Tensor
    """[L, N]."""
    stats: Tensor
    """[3 or 4, L, N] softmax statistics over the whole vocabulary."""
    loss: Tensor | None = None
    """Scalar sum of the pair losses, from the algorithm that computes it along the way."""
    pair_losses: Tensor | None = None
    """[P] without gradient; given with `loss`."""
