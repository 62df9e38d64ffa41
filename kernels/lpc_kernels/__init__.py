"""Kernels of megatron-lpc; usable without megatron-core."""

from lpc_kernels.gumbel_mix import GumbelMix, gumbel_mix
from lpc_kernels.pair_logps import Algorithm, PairLogps, pair_logps
from lpc_kernels.pairwise import PairLoss
from lpc_kernels.philox import POSTERIOR_NOISE, PRIOR_NOISE, gumbel_noise

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
