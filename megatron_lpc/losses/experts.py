"""The posterior of several pairs of a group: a product of experts over the posterior network's logits.

Each pair's logits f are one expert, exp(f_k) the evidence of that pair for code k up to a factor; independent pairs of
one annotator multiply their evidence, so their logits add. (VPL, arXiv 2408.10075, infers a latent from context pairs;
products of experts as posteriors: arXiv 1802.05335; one comparison per annotator cannot identify types of annotators,
several can: EM-DPO, arXiv 2510.15716.)

The prior p(z|x) is no factor. So a group has one mixture of codes for all its prompts, which `support` estimates and a
server can keep, and a prior that is sure of its code cannot make the context count for nothing.
"""

from __future__ import annotations

from torch import Tensor


def product_of_experts(logits: Tensor) -> Tensor:
    """Logits of the product of N experts: [N, K] -> [K]."""
    return logits.sum(0)


def leave_one_out(logits: Tensor, size: int) -> Tensor:
    """For each pair the product of the other pairs' experts in its episode: [B, K] -> [B, K].

    A pair's own label is kept out of its latent, which is what `support` does at evaluation.

    Args:
        logits: [B, K] of each pair, episode after episode.
        size: pairs of an episode, at least 2.

    Raises:
        ValueError: the pairs are not whole episodes.
    """
    episodes = by_episode(logits, size)
    return (episodes.sum(1, keepdim=True) - episodes).flatten(0, 1)


def by_episode(of_pairs: Tensor, size: int) -> Tensor:
    """[B, ...] of pairs, episode after episode -> [E, size, ...].

    Raises:
        ValueError: the pairs are not whole episodes.
    """
    if len(of_pairs) % size:
        raise ValueError(f"{len(of_pairs)} pairs are not whole episodes of {size}")
    return of_pairs.unflatten(0, (-1, size))
