"""Statistics of softmaxes whose vocabulary is spread over ranks: one collective, started early and awaited late.

Statistics are [3 or 4, L, C]: the running max of the logits, the running sum of exp(logit - max), the target's logit
(-inf where another shard has it), and, with entropy, the sum of exp(logit - max) (logit - max).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def gather_stats(stats: Tensor, group: dist.ProcessGroup | None) -> Callable[[], Tensor]:
    """Start to gather statistics [3 or 4, L, C]; the returned function waits for those of the whole vocabulary.

    They have equal bits on every rank. Collective: one all-gather of the statistics on `group`. It does what a MAX and
    a SUM all-reduce would do, in one round trip instead of two that depend on each other.
    """
    if group is None:
        return lambda: stats
    gathered = stats.new_empty((group.size(), *stats.shape))
    work = dist.all_gather_into_tensor(gathered.flatten(0, 1), stats, group=group, async_op=True)

    def merged() -> Tensor:
        work.wait()
        return merge_stats(gathered)

    return merged


def merge_stats(shards: Tensor) -> Tensor:
    """From statistics of shards of the vocabulary, [shards, 3 or 4, L, C], to those of the whole, [3 or 4, L, C]."""
    running_max = shards[:, 0].amax(0)
    shift = shards[:, 0] - running_max
    rescale = shift.exp()
    running_sum = shards[:, 1] * rescale
    merged = [running_max, running_sum.sum(0), shards[:, 2].amax(0)]
    if shards.size(1) > 3:
        # A shard without vocabulary has a shift of -inf and a sum of 0.
        finite_shift = shift.clamp(min=torch.finfo(shift.dtype).min)
        merged.append((shards[:, 3] * rescale + running_sum * finite_shift).sum(0))
    return torch.stack(merged)


def stats_without_vocabulary(stats: Tensor) -> Tensor:
    """Fill [3 or 4, L, C] with the statistics of a shard without vocabulary."""
    stats.zero_()
    stats[0], stats[2] = -torch.inf, -torch.inf
    return stats


def log_prob(stats: Tensor) -> Tensor:
    """[L, C] log-prob of the targets.

    The max is subtracted before the logarithm, so a large common offset of the logits costs no precision.
    """
    return (stats[2] - stats[0]) - stats[1].log()


def log_sum_exp(stats: Tensor) -> Tensor:
    """[L, C] logarithm of the sum of exp(logit)."""
    return stats[0] + stats[1].log()


def entropy(stats: Tensor) -> Tensor:
    """[L, C] entropy of the softmax, nats: -sum p (logit - max - log sum)."""
    return stats[1].log() - stats[3] / stats[1]
