"""Gumbel noise from Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    key     = (seed low, seed high)
    counter = (code, which latent, sample id low, sample id high)        low and high: 32 bits each, of a 64-bit number

The first of the four outputs becomes a uniform number exactly as `tl.rand` makes it, and then Gumbel noise. So the
noise of a sample does not depend on the batch, on the parallel layout, or on restarts. Triton kernels make it
themselves (`triton_kernels.gumbel`).
"""

from __future__ import annotations

from torch import Tensor

from lpc_kernels.philox.pytorch_backend import gumbel
from lpc_kernels.philox.validation import check_noise, check_seed


def gumbel_noise(sample_ids: Tensor, num_codes: int, seed: int, source: int) -> Tensor:
    """Gumbel(0, 1) noise of `num_codes` codes for each of B samples.

    Args:
        sample_ids: [B] int64.
        num_codes: K.
        seed: in [0, 2^64).
        source: `POSTERIOR_NOISE` or `PRIOR_NOISE`.

    Returns:
        [B, K] fp32 on the device of the ids, finite: -log(-log u) with u = 0 (one case in 2^31) raised to 2^-32,
        logarithms in fp64, the result rounded once to fp32.

    Raises:
        ValueError: ids that are not a vector of int64, fewer than one code, an unknown source, or a seed beyond 64
        bits.
    """
    check_noise(sample_ids, num_codes, source)
    check_seed(seed)
    return gumbel(sample_ids, num_codes, seed, source)
