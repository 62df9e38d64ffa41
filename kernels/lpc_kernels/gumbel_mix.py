"""The latent of a preference pair: Gumbel-softmax samples of posterior and prior, mixed with the codebook (arXiv 2505.04993, section 3)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lpc_kernels.philox import POSTERIOR_NOISE, PRIOR_NOISE, gumbel_noise

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class GumbelMix:
    """What `gumbel_mix` gives. All but `z` are fp32 (fp64 where the logits are); all are differentiable."""

    z: Tensor
    """[B, H] latent, in the codebook's dtype."""
    kl: Tensor
    """[B] exact KL(q || p) in nats."""
    q: Tensor
    """[B, K] posterior probabilities, without noise."""
    p: Tensor
    """[B, K] prior probabilities, without noise."""
    entropy_q: Tensor
    """[B] entropy of q in nats."""
    entropy_p: Tensor
    """[B] entropy of p in nats."""
    weights_q: Tensor
    """[B, K] code weights sampled from the posterior; one-hot with `straight_through`."""
    weights_p: Tensor
    """[B, K] code weights sampled from the prior."""


def gumbel_mix(
    logits_q: Tensor,
    logits_p: Tensor,
    codebook: Tensor,
    sample_ids: Tensor,
    *,
    seed: int,
    tau: float,
    prior_mix: float,
    straight_through: bool = False,
) -> GumbelMix:
    """z = ((1 - m) w_q + m w_p) E with w = softmax((logits + g) / tau), g Gumbel noise of (seed, sample id, which latent, code).

    logits_q, logits_p: [B, K]. codebook E: [K, H]. sample_ids: [B] int64, the global number of each pair: its noise does not depend
    on the rest of the batch, nor on where the batch is computed. tau > 0: temperature. prior_mix: m in [0, 1]; at exactly 0 or 1 the
    other side takes no part in z, whatever its values. straight_through: weights are one-hot forward, with the soft weights' gradient.
    Differentiable in both logits and the codebook, more than once on CPU only. No collectives: ranks that hold the same inputs get the
    same outputs. Runs on Triton for CUDA tensors, and for all with TRITON_INTERPRET=1; else in plain PyTorch, the noise equal to the bit.
    Raises ValueError for shapes that do not fit, tau <= 0, m outside [0, 1], and what `gumbel_noise` refuses.
    """
    if logits_q.dim() != 2 or logits_p.shape != logits_q.shape:
        raise ValueError(
            f"gumbel_mix: logits_q and logits_p must both be [B, K], got {list(logits_q.shape)} and {list(logits_p.shape)}"
        )
    batch, codes = logits_q.shape
    if codebook.dim() != 2 or codebook.size(0) != codes:
        raise ValueError(
            f"gumbel_mix: codebook must be [K, H] with K = {codes} as in the logits, got {list(codebook.shape)}"
        )
    if sample_ids.shape != (batch,):
        raise ValueError(
            f"gumbel_mix: sample_ids must be [B] with B = {batch} as in the logits, got {list(sample_ids.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"gumbel_mix: tau must be positive, got {tau}")
    if not 0 <= prior_mix <= 1:
        raise ValueError(f"gumbel_mix: prior_mix must be in [0, 1], got {prior_mix}")

    if logits_q.is_cuda or _INTERPRETED:
        # Not before it is needed: PyTorch for CPU comes without Triton.
        from lpc_kernels.gumbel_mix_op import gumbel_mix_op

        signed_seed = seed - (1 << 64) if seed >= 1 << 63 else seed
        return GumbelMix(
            *gumbel_mix_op(logits_q, logits_p, codebook, sample_ids, signed_seed, tau, prior_mix, straight_through)[:8]
        )
    return gumbel_mix_reference(
        logits_q,
        logits_p,
        codebook,
        sample_ids,
        seed=seed,
        tau=tau,
        prior_mix=prior_mix,
        straight_through=straight_through,
    )


def gumbel_mix_reference(
    logits_q: Tensor,
    logits_p: Tensor,
    codebook: Tensor,
    sample_ids: Tensor,
    *,
    seed: int,
    tau: float,
    prior_mix: float,
    straight_through: bool,
) -> GumbelMix:
    """`gumbel_mix` in plain PyTorch, on any device, for arguments that it has checked."""
    dtype = torch.promote_types(torch.promote_types(logits_q.dtype, logits_p.dtype), torch.float32)
    logits_q, logits_p = logits_q.to(dtype), logits_p.to(dtype)
    log_q, log_p = logits_q.log_softmax(-1), logits_p.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    weights_q = _sample(logits_q, sample_ids, seed, POSTERIOR_NOISE, tau, straight_through)
    weights_p = _sample(logits_p, sample_ids, seed, PRIOR_NOISE, tau, straight_through)
    # Not 0 * weights: a product with zero would let NaN and infinity through.
    if prior_mix == 0:
        weights = weights_q
    elif prior_mix == 1:
        weights = weights_p
    else:
        weights = (1 - prior_mix) * weights_q + prior_mix * weights_p
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


def _sample(logits: Tensor, sample_ids: Tensor, seed: int, stream: int, tau: float, straight_through: bool) -> Tensor:
    noisy = logits + gumbel_noise(sample_ids, logits.size(-1), seed, stream)
    # The largest leaves before a small tau magnifies the rounding of what is left.
    soft = ((noisy - noisy.detach().amax(-1, keepdim=True)) / tau).softmax(-1)
    if not straight_through:
        return soft
    # Of the noisy logits, which have the same bits everywhere; those of a softmax depend on the machine.
    hard = one_hot(noisy.argmax(-1), logits.size(-1)).to(soft.dtype)
    # In this order the forward value is exactly one-hot: the bracket is zero.
    return hard + (soft - soft.detach())
