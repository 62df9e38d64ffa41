"""The latent of a preference pair: Gumbel-softmax samples of posterior and prior, mixed with the codebook.

Start at `api.py`.
"""

from lpc_kernels.gumbel_mix.api import gumbel_mix
from lpc_kernels.gumbel_mix.result import GumbelMix

__all__ = ["GumbelMix", "gumbel_mix"]
