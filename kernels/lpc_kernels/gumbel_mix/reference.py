"""`gumbel_mix` by its definition, in fp64. What the other files must agree with; for tests, not for use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from lpc_kernels.gumbel_mix.result import GumbelMix, MixOptions
from lpc_kernels.philox import POSTERIOR_NOISE, PRIOR_NOISE, gumbel_noise


def gumbel_mix_reference(
    logits_q: Tensor, logits_p: Tensor, codebook: Tensor, sample_ids: Tensor, options: MixOptions
) -> GumbelMix:
    """Soft weights: quotients of exponentials, entropies by `torch.distributions`, the product a sum over codes.

    All outputs fp64.
    """
    logits_q, logits_p, codebook = logits_q.double(), logits_p.double(), codebook.double()
    q = Categorical(logits=logits_q, validate_args=False)
    p = Categorical(logits=logits_p, validate_args=False)

    def sample(logits: Tensor, source: int) -> Tensor:
        noise = gumbel_noise(sample_ids, logits.size(1), options.seed, source).double()
        relaxed = (logits + noise) / options.tau
        exponentials = (relaxed - relaxed.max(-1, keepdim=True).values).exp()
        return exponentials / exponentials.sum(-1, keepdim=True)

    weights_q = sample(logits_q, POSTERIOR_NOISE)
    weights_p = sample(logits_p, PRIOR_NOISE)
    weights = (1 - options.prior_mix) * weights_q + options.prior_mix * weights_p
    return GumbelMix(
        z=torch.sum(weights[:, :, None] * codebook[None], dim=1),
        kl=kl_divergence(q, p),
        q=q.probs,
        p=p.probs,
        entropy_q=q.entropy(),
        entropy_p=p.entropy(),
        weights_q=weights_q,
        weights_p=weights_p,
    )
