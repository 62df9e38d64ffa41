"""What the noise refuses."""

from __future__ import annotations

import torch
from torch import Tensor

from lpc_kernels.philox.constants import POSTERIOR_NOISE, PRIOR_NOISE


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that does not fit into 64 bits without sign."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"philox: seed must be in [0, 2^64), got {seed}")


def check_noise(sample_ids: Tensor, num_codes: int, source: int) -> None:
    """Raises ValueError for ids that are not a vector of int64, for fewer than one code, and for an unknown source."""
    if sample_ids.dim() != 1 or sample_ids.dtype != torch.int64:
        raise ValueError(f"gumbel_noise: sample_ids must be [B] int64, got {list(sample_ids.shape)} {sample_ids.dtype}")
    if num_codes < 1:
        raise ValueError(f"gumbel_noise: num_codes must be at least 1, got {num_codes}")
    if source not in (POSTERIOR_NOISE, PRIOR_NOISE):
        raise ValueError(
            f"gumbel_noise: source must be {POSTERIOR_NOISE} (posterior) or {PRIOR_NOISE} (prior), got {source}"
        )
