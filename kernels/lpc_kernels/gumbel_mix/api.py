"""The latent of a preference pair: Gumbel-softmax samples of posterior and prior, mixed with the codebook.

Source: arXiv 2505.04993, section 3.
"""

from __future__ import annotations

from torch import Tensor

from lpc_kernels.gumbel_mix.pytorch_backend import gumbel_mix_pytorch
from lpc_kernels.gumbel_mix.result import GumbelMix, MixOptions
from lpc_kernels.gumbel_mix.validation import check
from lpc_kernels.triton_support import runs_on_triton


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
    """z = ((1 - m) w_q + m w_p) E with w = softmax((logits + g) / tau) and Gumbel noise g.

    The noise is a function of (seed, sample id, which latent, code), see `gumbel_noise`. Differentiable in both
    logits and the codebook, more than once on CPU only. No collectives: ranks that hold the same inputs get the same
    outputs. Runs on Triton for CUDA tensors, and for all with TRITON_INTERPRET=1; else in plain PyTorch, with the same
    noise to the bit.

    Args:
        logits_q: [B, K] of the posterior.
        logits_p: [B, K] of the prior.
        codebook: E, [K, H].
        sample_ids: [B] int64, the global number of each pair: its noise does not depend on the rest of the batch, nor
            on where the batch is computed.
        seed: of the noise, in [0, 2^64).
        tau: temperature, > 0.
        prior_mix: m in [0, 1]; at exactly 0 or 1 z does not depend on the other side, whatever its values.
        straight_through: weights are one-hot forward, with the soft weights' gradient.

    Raises:
        ValueError: shapes that do not fit, tau <= 0, m outside [0, 1], and what `gumbel_noise` refuses.
    """
    options = MixOptions(seed=seed, tau=tau, prior_mix=prior_mix, straight_through=straight_through)
    check(logits_q, logits_p, codebook, sample_ids, options)
    if runs_on_triton(logits_q):
        from lpc_kernels.gumbel_mix.ops import gumbel_mix_triton

        return gumbel_mix_triton(logits_q, logits_p, codebook, sample_ids, options)
    return gumbel_mix_pytorch(logits_q, logits_p, codebook, sample_ids, options)
