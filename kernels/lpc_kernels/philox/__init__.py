"""Counter-based Gumbel noise: a function of (seed, sample id, which latent, code) and of nothing else.

Start at `api.py`.
"""

from lpc_kernels.philox.api import gumbel_noise
from lpc_kernels.philox.constants import POSTERIOR_NOISE, PRIOR_NOISE

__all__ = ["POSTERIOR_NOISE", "PRIOR_NOISE", "gumbel_noise"]
