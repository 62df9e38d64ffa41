"""`gumbel_mix` in PyTorch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lpc_kernels.gumbel_mix.result import GumbelMix, MixOptions
from lpc_kernels.philox import POSTERIOR_NOISE, PRIOR_NOISE, gumbel_noise


def gumbel_mix_pytorch(
    logits_q: Tensor, logits_p: Tensor, codebook: Tensor, sample_ids: Tensor, options: MixOptions
) -> GumbelMix:
    """`gumbel_mix` for arguments that are checked."""
    dtype = torch.promote_types(torch.promote_types(logits_q.dtype, logits_p.dtype), torch.float32)
    logits_q, logits_p = logits_q.to(dtype), logits_p.to(dtype)
    log_q, log_p = logits_q.log_softmax(-1), logits_p.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    weights_q = _sample(logits_q, sample_ids, POSTERIOR_NOISE, options)
    weights_p = _sample(logits_p, sample_ids, PRIOR_NOISE, options)
    weights = _mix(weights_q, weights_p, options.prior_mix)
    return GumbelMix(
        z=(weights @ codebook.to(dtype)).to(codebook.dtype),
        kl=(q * (log_q - log_p)).sum(-1),
        q=q,
        p=p,
        entropy_q=-(q * log_q).sum(-1),
        entropy_p=-(p * log_p).sum(-1),
        weights_q=weights_q,
        weights_p=weights_p,
    )


def _mix(weights_q: Tensor, weights_p: Tensor, prior_mix: float) -> Tensor:
    # Not 0 * weights: a product with zero would let NaN and infinity through.
    if prior_mix == 0:
        return weights_q
    if prior_mix == 1:
        return weights_p
    return (1 - prior_mix) * weights_q + prior_mix * weights_p


def _sample(logits: Tensor, sample_ids: Tensor, source: int, options: MixOptions) -> Tensor:
    noisy = logits + gumbel_noise(sample_ids, logits.size(-1), options.seed, source)
    # The largest is subtracted before a small tau magnifies the rounding of what is left.
    shifted = noisy - noisy.detach().amax(-1, keepdim=True)
    soft = (shifted / options.tau).softmax(-1)
    if not options.straight_through:
        return soft
    # Of the noisy logits, which have the same bits everywhere; those of a softmax depend on the machine.
    hard = one_hot(noisy.argmax(-1), logits.size(-1)).to(soft.dtype)
    # In this order the forward value is exactly one-hot: the bracket is zero.
    return hard + (soft - soft.detach())
