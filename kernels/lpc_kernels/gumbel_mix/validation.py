"""What `gumbel_mix` refuses."""

from __future__ import annotations

from torch import Tensor

from lpc_kernels.gumbel_mix.result import MixOptions
from lpc_kernels.philox.constants import POSTERIOR_NOISE
from lpc_kernels.philox.validation import check_noise, check_seed


def check(logits_q: Tensor, logits_p: Tensor, codebook: Tensor, sample_ids: Tensor, options: MixOptions) -> None:
    """Raises ValueError for shapes and options that do not fit, and for what `gumbel_noise` refuses."""
    if logits_q.dim() != 2 or logits_p.shape != logits_q.shape:
        got = f"{list(logits_q.shape)} and {list(logits_p.shape)}"
        raise ValueError(f"gumbel_mix: logits_q and logits_p must both be [B, K], got {got}")
    batch, num_codes = logits_q.shape
    if codebook.dim() != 2 or codebook.size(0) != num_codes:
        raise ValueError(
            f"gumbel_mix: codebook must be [K, H] with K = {num_codes} as in the logits, got {list(codebook.shape)}"
        )
    if sample_ids.shape != (batch,):
        raise ValueError(
            f"gumbel_mix: sample_ids must be [B] with B = {batch} as in the logits, got {list(sample_ids.shape)}"
        )
    if not options.tau > 0:
        raise ValueError(f"gumbel_mix: tau must be positive, got {options.tau}")
    if not 0 <= options.prior_mix <= 1:
        raise ValueError(f"gumbel_mix: prior_mix must be in [0, 1], got {options.prior_mix}")
    check_noise(sample_ids, num_codes, POSTERIOR_NOISE)
    check_seed(options.seed)
