"""`gumbel_mix` in Triton: blocks and warps, and the launches. Importing this module needs Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpc_kernels.gumbel_mix import triton_kernels as kernels
from lpc_kernels.gumbel_mix.result import MixOptions

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of `GumbelMix`, then the soft weights of both sides."""
_TRITON_TYPES = {torch.float64: tl.float64, torch.float32: tl.float32}


class Saved(NamedTuple):
    """What the backward pass reads."""

    logits_q: Tensor
    logits_p: Tensor
    codebook: Tensor
    weights_q: Tensor
    weights_p: Tensor
    soft_q: Tensor
    soft_p: Tensor


class Upstream(NamedTuple):
    """Gradients of the fields of `GumbelMix`; None: zero."""

    d_z: Tensor | None
    d_kl: Tensor | None
    d_q: Tensor | None
    d_p: Tensor | None
    d_entropy_q: Tensor | None
    d_entropy_p: Tensor | None
    d_weights_q: Tensor | None
    d_weights_p: Tensor | None


def blocks(num_codes: int, hidden_size: int) -> dict[str, int]:
    """Block sizes (BLOCK_K, BLOCK_C, BLOCK_H) and num_warps for K codes of size H."""
    block_k = triton.next_power_of_2(num_codes)
    return {
        "BLOCK_K": block_k,
        "BLOCK_C": min(block_k, 16),
        "BLOCK_H": min(256, triton.next_power_of_2(hidden_size)),
        "num_warps": 4 if block_k <= 1024 else 16,
    }


def forward(logits_q: Tensor, logits_p: Tensor, codebook: Tensor, sample_ids: Tensor, options: MixOptions) -> Outputs:
    """All outputs in one launch."""
    outputs = empty_outputs(logits_q, logits_p, codebook, options.straight_through)
    batch, num_codes = logits_q.shape
    hidden_size = codebook.size(1)
    plan = blocks(num_codes, hidden_size)
    if batch == 0:
        return outputs
    kernels.forward[batch, triton.cdiv(hidden_size, plan["BLOCK_H"])](
        *(x.contiguous() for x in (logits_q, logits_p, codebook, sample_ids)),
        *outputs[:8],
        *(outputs[8:] if options.straight_through else (None, None)),
        options.seed,
        num_codes,
        hidden_size,
        options.tau,
        1 - options.prior_mix,
        options.prior_mix,
        HARD=options.straight_through,
        DTYPE=_TRITON_TYPES[outputs[1].dtype],
        enable_fp_fusion=False,
        **plan,
    )
    return outputs


def backward(saved: Saved, upstream: Upstream, tau: float, prior_mix: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both logits and of the codebook, the last zero without `d_z`, in at most two launches."""
    batch, num_codes = saved.logits_q.shape
    hidden_size = saved.codebook.size(1)
    plan = blocks(num_codes, hidden_size)
    d_logits_q, d_logits_p, d_codebook = gradients = empty_gradients(saved)
    d_z = None if upstream.d_z is None else upstream.d_z.contiguous()
    d_mix = None
    num_programs = batch
    if d_z is None:
        d_codebook.zero_()
    else:
        d_mix = _backward_weights(saved, d_z)
        num_programs += triton.cdiv(num_codes, plan["BLOCK_C"]) * triton.cdiv(hidden_size, plan["BLOCK_H"])
    if num_programs:
        inputs = (saved.logits_q, saved.logits_p, saved.weights_q, saved.weights_p, saved.soft_q, saved.soft_p)
        kernels.backward_inputs[(num_programs,)](
            *(x.contiguous() for x in inputs),
            d_z,
            d_mix,
            *(None if x is None else x.contiguous() for x in upstream[1:]),
            d_logits_q,
            d_logits_p,
            d_codebook,
            batch,
            num_codes,
            hidden_size,
            tau,
            1 - prior_mix,
            prior_mix,
            DTYPE=_TRITON_TYPES[saved.weights_q.dtype],
            **plan,
        )
    return gradients


def _backward_weights(saved: Saved, d_z: Tensor) -> Tensor:
    """[B, K] gradient of the mixture weights, d_z E^T."""
    batch, num_codes = saved.logits_q.shape
    hidden_size = saved.codebook.size(1)
    plan = blocks(num_codes, hidden_size)
    plan.pop("BLOCK_K")
    d_mix = torch.empty_like(saved.weights_q)
    if batch:
        kernels.backward_weights[batch, triton.cdiv(num_codes, plan["BLOCK_C"])](
            d_z,
            saved.codebook.contiguous(),
            d_mix,
            num_codes,
            hidden_size,
            DTYPE=_TRITON_TYPES[saved.weights_q.dtype],
            **plan,
        )
    return d_mix


def empty_outputs(logits_q: Tensor, logits_p: Tensor, codebook: Tensor, straight_through: bool) -> Outputs:
    """The outputs without values."""
    batch, num_codes = logits_q.shape
    dtype = torch.promote_types(torch.promote_types(logits_q.dtype, logits_p.dtype), torch.float32)

    def of_pairs() -> Tensor:
        return logits_q.new_empty(batch, dtype=dtype)

    def of_codes(count: int = batch) -> Tensor:
        return logits_q.new_empty((count, num_codes), dtype=dtype)

    z = codebook.new_empty((batch, codebook.size(1)))
    kl, q, p, entropy_q, entropy_p = of_pairs(), of_codes(), of_codes(), of_pairs(), of_pairs()
    weights_q, weights_p = of_codes(), of_codes()
    num_soft = batch if straight_through else 0
    return z, kl, q, p, entropy_q, entropy_p, weights_q, weights_p, of_codes(num_soft), of_codes(num_soft)


def empty_gradients(saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both logits and of the codebook without values."""
    return (
        saved.logits_q.new_empty(saved.logits_q.shape),
        saved.logits_p.new_empty(saved.logits_p.shape),
        saved.codebook.new_empty(saved.codebook.shape),
    )
