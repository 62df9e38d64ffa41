"""A group's latent: a mixture of codes estimated from a few pairs that the group labelled, its support set.

The posterior sees which response won, so accuracy under a pair's own posterior proves nothing about the codes. The
accuracy on other pairs of the same group, its query set, does.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lpc.losses.experts import product_of_experts

MOST_SWAPS = 16
"""Other groups, at most, by whose latent each pair is scored: every further one costs a pass over pairs and codes."""


def draw_support(groups: Sequence[str], pairs: int, seed: int) -> dict[str, list[int]]:
    """Draw the support set of each group without replacement.

    A group's draw depends on the seed, its name and how many pairs it has, not on the other groups.

    Args:
        groups: group of each example, in the order of the data set.
        pairs: pairs of each support set; groups with fewer are left out.

    Returns:
        Group -> example indices of its support set, ascending.
    """
    examples: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        examples.setdefault(group, []).append(index)
    support = {}
    for group, indices in sorted(examples.items()):
        if len(indices) >= pairs:
            support[group] = sorted(random.Random(f"{seed}/{group}").sample(indices, pairs))
    return support


def support_mixtures(
    posterior_logits: Tensor, support: Mapping[str, Sequence[int]], product: bool = False
) -> dict[str, Tensor]:
    """A mixture of codes for each group, from its support set: [P, K] logits -> [K] weights per group, in the logits'
    dtype.

    Args:
        product: the posterior of the whole support set as a product of experts, for a model that was trained so
            (`posterior_context`); else the mean of its pairs' posteriors.
    """
    return {
        group: pooled_posterior(posterior_logits[torch.tensor(indices)], product) for group, indices in support.items()
    }


def pooled_posterior(posterior_logits: Tensor, product: bool) -> Tensor:
    """[K] weights of the codes from the posterior logits [N, K] of N pairs; `product` as of `support_mixtures`."""
    if product:
        return product_of_experts(posterior_logits).softmax(-1)
    return posterior_logits.softmax(-1).mean(0)


def prompts_of_support(prompts: Sequence[Hashable], support: Mapping[str, Sequence[int]]) -> dict[str, set[Hashable]]:
    """Group -> prompts of its support set, of the P prompts of a data set."""
    return {group: {prompts[index] for index in indices} for group, indices in support.items()}


def query_pairs(
    groups: Sequence[str], prompts: Sequence[Hashable], support_prompts: Mapping[str, set[Hashable]]
) -> Tensor:
    """[P] bool: pairs of a group with a support set, whose prompt is not in that support set.

    So the support set's own pairs are excluded as well, where they are among the P.

    Args:
        groups, prompts: group and prompt of each of the P pairs.
        support_prompts: prompts of each group's support set; a group that is missing here has none.
    """
    is_query = [
        group in support_prompts and prompt not in support_prompts[group]
        for group, prompt in zip(groups, prompts, strict=True)
    ]
    return torch.tensor(is_query, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class GroupLatents:
    """The latent of each group, and the prompts that it was estimated from."""

    mixtures: dict[str, Tensor]
    """Group -> [K] mixture weights: the mean posterior over its support set. Without codes, what stands for them in
    `PairBatch.mixture`."""
    log_likelihoods: dict[str, Tensor]
    """Group -> [K] log-likelihood of all labels of its support set under each code; empty without codes."""
    prompts: dict[str, set[Hashable]]
    """Group -> prompts of its support set."""

    @classmethod
    def estimate(
        cls,
        posterior_logits: Tensor,
        log_likelihoods: Tensor,
        groups: Sequence[str],
        prompts: Sequence[Hashable],
        *,
        pairs: int,
        seed: int,
        product: bool = False,
    ) -> GroupLatents:
        """Draw a support set of `pairs` pairs of each group; pool its posterior and add up its log-likelihoods.

        Args:
            posterior_logits: [P, K].
            log_likelihoods: [P, K] of each pair's label under each code.
            groups, prompts: group and prompt of each of the P pairs.
            product: as `support_mixtures` takes it.
        """
        support = draw_support(groups, pairs, seed)
        return cls(
            mixtures=support_mixtures(posterior_logits, support, product),
            log_likelihoods={group: log_likelihoods[indices].sum(0) for group, indices in support.items()},
            prompts=prompts_of_support(prompts, support),
        )

    def query_pairs(self, groups: Sequence[str], prompts: Sequence[Hashable]) -> Tensor:
        """[P] bool: the pairs that may be scored under their group's latent."""
        return query_pairs(groups, prompts, self.prompts)

    def mixture_of_each(self, groups: Sequence[str]) -> Tensor:
        """[P, K] mixture weights of each pair's group; some group has a support set.

        Zero for a group without a support set, whose pairs are no query pairs.
        """
        zero = torch.zeros_like(next(iter(self.mixtures.values())))
        return torch.stack([self.mixtures.get(group, zero) for group in groups])

    def exact_log_weights(self, groups: Sequence[str], log_prior: Tensor) -> Tensor:
        """[P, K] log of the exact posterior over codes for each pair, up to a constant per pair.

        log p(k|x) of the pair itself, plus the log-likelihoods of its group's support set; nothing of the pair's own
        label.

        Args:
            groups: group of each pair; one without a support set adds nothing.
            log_prior: [P, K] log p(k|x).
        """
        zero = torch.zeros(log_prior.size(1), dtype=log_prior.dtype)
        return log_prior + torch.stack([self.log_likelihoods.get(group, zero) for group in groups])

    def swaps(self, groups: Sequence[str]) -> Iterator[list[str]]:
        """For each pair another group than its own, again and again until each pair has met all other groups.

        Of more than `MOST_SWAPS` others only those that follow its own in the order of their names. A group without a
        support set stays as it is.
        """
        names = sorted(self.log_likelihoods)
        place = {name: index for index, name in enumerate(names)}
        for shift in range(1, min(len(names), MOST_SWAPS + 1)):
            yield [names[(place[group] + shift) % len(names)] if group in place else group for group in groups]
