"""Statistics of softmaxes whose words are spread over ranks: one collective, started early and awaited late."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def gather_stats(stats: Tensor, group: dist.ProcessGroup | None) -> Callable[[], Tensor]:
    """Start to exchange `row_stats` [S, L, C]; call what is returned to wait for those over all ranks' words, the same bits on every rank.

    Collective: one all-gather of S L C numbers. It does what a MAX and a SUM all-reduce would do, in one round trip instead of two that
    depend on each other.
    """
    if group is None:
        return lambda: stats
    everyone = stats.new_empty((group.size(), *stats.shape))
    work = dist.all_gather_into_tensor(everyone.flatten(0, 1), stats, group=group, async_op=True)

    def merged() -> Tensor:
        work.wait()
        return merge_stats(everyone)

    return merged


def merge_stats(everyone: Tensor) -> Tensor:
    """Statistics over several shares of the words, [shares, S, L, C], as of all of them, [S, L, C]."""
    peak = everyone[:, 0].amax(0)
    shift = everyone[:, 0] - peak
    factor = shift.exp()
    total = everyone[:, 1] * factor
    merged = [peak, total.sum(0), everyone[:, 2].amax(0)]
    if everyone.size(1) > 3:
        # A share without words has a shift of -inf and a total of 0.
        merged.append((everyone[:, 3] * factor + total * shift.clamp(min=torch.finfo(shift.dtype).min)).sum(0))
    return torch.stack(merged)


def log_prob(stats: Tensor) -> Tensor:
    """[L, C] log-prob of the targets. The largest logit leaves before the logarithm comes: a large common offset loses nothing."""
    return (stats[2] - stats[0]) - stats[1].log()


def log_sum_exp(stats: Tensor) -> Tensor:
    """[L, C] logarithm of the sum of exp(logit)."""
    return stats[0] + stats[1].log()


def entropy(stats: Tensor) -> Tensor:
    """[L, C] entropy of the softmax, nats: -sum p (logit - largest - log total)."""
    return stats[1].log() - stats[3] / stats[1]
