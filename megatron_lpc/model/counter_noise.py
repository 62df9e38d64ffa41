"""Noise of a pair as a function of the seed and its sample id alone: that of `lpc_kernels`, transformed."""

from __future__ import annotations

from lpc_kernels import POSTERIOR_NOISE, gumbel_noise
from torch import Tensor, special


def uniform_noise(sample_ids: Tensor, size: int, seed: int) -> Tensor:
    """[B, size] fp64 uniform numbers in (0, 1): a Gumbel variate through its distribution function.

    Args:
        sample_ids: [B] int64.
    """
    return (-(-gumbel_noise(sample_ids, size, seed, POSTERIOR_NOISE).double()).exp()).exp()


def normal_noise(sample_ids: Tensor, size: int, seed: int) -> Tensor:
    """[B, size] fp32 standard normal numbers, by the inverse of their distribution function.

    Args:
        sample_ids: [B] int64.
    """
    return special.ndtri(uniform_noise(sample_ids, size, seed)).float()
