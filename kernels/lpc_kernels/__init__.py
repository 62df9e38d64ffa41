"""Kernels of megatron-lpc; usable without megatron-core."""

from lpc_kernels.gumbel_mix import GumbelMix, gumbel_mix
from lpc_kernels.pair_logps import PairLogps, Schedule, pair_logps
from lpc_kernels.pairwise import PairLoss
from lpc_kernels.philox import POSTERIOR_STREAM, PRIOR_STREAM, gumbel_noise

__all__ = [
    "POSTERIOR_STREAM",
    "PRIOR_STREAM",
    "GumbelMix",
    "PairLogps",
    "PairLoss",
    "Schedule",
    "gumbel_mix",
    "gumbel_noise",
    "pair_logps",
]
