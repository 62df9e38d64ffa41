"""Kernels of Latent Preference Coding as plain functions of tensors; usable without megatron-core."""

from lpc_kernels.gumbel_mix import GumbelMix, gumbel_mix
from lpc_kernels.pair_logps import Algorithm, PairLogps, PairLoss, pair_logps
from lpc_kernels.philox import POSTERIOR_NOISE, PRIOR_NOISE, gumbel_noise

__version__ = "0.1.0"

__all__ = [
    "POSTERIOR_NOISE",
    "PRIOR_NOISE",
    "Algorithm",
    "GumbelMix",
    "PairLogps",
    "PairLoss",
    "gumbel_mix",
    "gumbel_noise",
    "pair_logps",
]
