"""Tensors of a preference loss on top of an LM head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks.kernels.pair_case import PairCase

BETA = 0.1
"""Of DPO."""


@dataclass(frozen=True)
class PairInputs:
    """Tensors of a case; the masked tokens are an exact share of all, at random places."""

    hidden: Tensor
    """[N, H]"""
    lm_head_weight: Tensor
    """[V, H], with logits of variance about 1."""
    z: Tensor
    """[L, P, H], or [L, 1, H] where all pairs share the latents."""
    targets: Tensor
    """[N] int64"""
    segment_ids: Tensor
    """[N] int64 response of each token."""
    real: Tensor
    """[N] bool: the token carries loss."""
    pairs: int
    """P"""

    @property
    def labels(self) -> Tensor:
        """[N] targets as cross-entropy functions want them: -100 where there is no loss."""
        return self.targets.where(self.real, -100)

    def loss(self, token_logps: Tensor) -> Tensor:
        """Scalar DPO loss with a reference of log-prob 0: mean over pairs, sum over latents, from [L, N] log-probs."""
        chosen_and_rejected = (token_logps * self.real).view(token_logps.size(0), 2, self.pairs, -1).sum(-1)
        margin = chosen_and_rejected[:, 0] - chosen_and_rejected[:, 1]
        return -logsigmoid(BETA * margin).mean(-1).sum()

    def shifted(self, latent: int) -> Tensor:
        """[N, H] hidden states with a latent added."""
        response = self.hidden.size(0) // (2 * self.pairs)
        per_token = self.z[latent].expand(self.pairs, -1).repeat(2, 1).repeat_interleave(response, 0)
        return self.hidden + per_token

    def each_shifted(self) -> list[Tensor]:
        """`shifted` under each of the L latents."""
        return [self.shifted(latent) for latent in range(self.z.size(0))]


def draw(case: PairCase, *, train_head: bool = True) -> PairInputs:
    """Inputs of a case, always the same; those that it trains want gradients, the head only with `train_head`."""
    generator = torch.Generator(case.device).manual_seed(0)
    training = case.direction == "training"
    everything = training and case.trained == "all"

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=case.dtype, device=case.device)

    hidden = normal(case.tokens, case.hidden_size).requires_grad_(everything)
    z = normal(case.latents, 1 if case.shared else case.pairs, case.hidden_size).requires_grad_(training)
    lm_head_weight = normal(case.vocab_size, case.hidden_size).mul_(case.hidden_size**-0.5)
    lm_head_weight.requires_grad_(everything and train_head)
    order = torch.randperm(case.tokens, generator=generator, device=case.device)
    real = order >= round(case.tokens * case.masked)
    targets = torch.randint(0, case.vocab_size, (case.tokens,), generator=generator, device=case.device)
    segment_ids = torch.arange(case.tokens, device=case.device) // case.response
    return PairInputs(hidden, lm_head_weight, z, targets, segment_ids, real, case.pairs)
