"""A latent as the `logit_bias` of servers with OpenAI's interface, which take few entries: what is left out is lost.

Shape legend: V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor

OPENAI_ENTRIES = 300
"""Most entries of a request that OpenAI's servers take."""
_LARGEST = 100.0
"""Size of the largest bias."""
_UNSEEN = 0.1
"""Times that a token which does not occur is taken to occur."""
_ROUNDS = 4


def logit_bias(added: Tensor, entries: int, counts: Tensor | None = None) -> dict[int, float]:
    """The entries that matter most of what a latent adds to the logits, token id -> bias.

    A constant that is added to all logits changes nothing, so what is left out need not be 0 but a constant, which is
    taken from the entries. An entry matters by its distance from that constant, times how often its token is
    generated: the mean of its frequency without the latent (`counts`) and with it. The constant is the mean of what is
    left out, weighted so.

    Args:
        added: [V] fp32 p (C W^T).
        entries: most entries.
        counts: [V] how often each token occurs in texts like the responses. When not given, all tokens weigh the same.
    """
    importance = torch.ones_like(added)
    if counts is not None:
        frequency = counts.to(added) + _UNSEEN
        frequency = frequency / frequency.sum()
        importance = (frequency + (frequency.log() + added).softmax(0)) / 2
    left_out = torch.ones_like(added, dtype=torch.bool)
    for _ in range(_ROUNDS):
        if left_out.any():
            constant = (importance * added)[left_out].sum() / importance[left_out].sum()
        kept = (importance * (added - constant).abs()).topk(min(entries, len(added))).indices
        left_out = torch.ones_like(left_out).index_fill(0, kept, False)
    biases = (added[kept] - constant).clamp(-_LARGEST, _LARGEST)
    return {token: round(bias, 4) for token, bias in zip(kept.tolist(), biases.tolist(), strict=True)}
