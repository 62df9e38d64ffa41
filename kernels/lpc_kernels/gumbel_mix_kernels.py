# mypy: allow-untyped-defs
"""Triton kernels of `gumbel_mix`: one forward, two backward. No atomics, so two runs give the same bits.

Arguments are contiguous, with B pairs, K codes and width H. Products with the codebook are sums of fp32 (fp64) products, without matrix
instructions: B is a handful and a codebook element is used once a pair, so reading the codebook is what takes time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lpc_kernels.philox import POSTERIOR_NOISE, PRIOR_NOISE
from lpc_kernels.philox_triton import gumbel

_POSTERIOR_NOISE = tl.constexpr(POSTERIOR_NOISE)
_PRIOR_NOISE = tl.constexpr(PRIOR_NOISE)


# fmt: off
@triton.jit
def forward(
    logits_q, logits_p, codebook, sample_ids,  # [B, K], [B, K], [K, H], [B] int64
    z, kl, q, p, entropy_q, entropy_p,  # [B, H], [B], [B, K], [B, K], [B], [B]
    weights_q, weights_p, soft_q, soft_p,  # [B, K]
    seed: tl.int64, K, H, tau: tl.float64, share_q: tl.float64, share_p: tl.float64,
    HARD: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):
    # fmt: on
    """Program (b, t) makes tile t of z[b]; those of t = 0 store all the rest of pair b. Soft weights are stored beside hard ones only."""
    row = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, BLOCK_K)
    real = code < K
    at = row * K + code
    raw_q = tl.load(logits_q + at, mask=real, other=float("-inf")).to(DTYPE)
    raw_p = tl.load(logits_p + at, mask=real, other=float("-inf")).to(DTYPE)
    sample = tl.load(sample_ids + row)
    noisy_q = raw_q + gumbel(sample, code, seed, _POSTERIOR_NOISE).to(DTYPE)
    noisy_p = raw_p + gumbel(sample, code, seed, _PRIOR_NOISE).to(DTYPE)
    temperature = tl.full((), tau, DTYPE)
    relaxed_q, relaxed_p = _soften(noisy_q, temperature), _soften(noisy_p, temperature)
    if HARD:
        drawn_q, drawn_p = _harden(relaxed_q, noisy_q, code), _harden(relaxed_p, noisy_p, code)
    else:
        drawn_q, drawn_p = relaxed_q, relaxed_p

    if tl.program_id(1) == 0:
        log_q, log_p = _log_softmax(raw_q), _log_softmax(raw_p)
        chance_q, chance_p = tl.exp(log_q), tl.exp(log_p)
        tl.store(kl + row, tl.sum(tl.where(real, chance_q * (log_q - log_p), 0.0), 0))
        tl.store(entropy_q + row, -tl.sum(tl.where(real, chance_q * log_q, 0.0), 0))
        tl.store(entropy_p + row, -tl.sum(tl.where(real, chance_p * log_p, 0.0), 0))
        tl.store(q + at, chance_q, mask=real)
        tl.store(p + at, chance_p, mask=real)
        tl.store(weights_q + at, drawn_q, mask=real)
        tl.store(weights_p + at, drawn_p, mask=real)
        if HARD:
            tl.store(soft_q + at, relaxed_q, mask=real)
            tl.store(soft_p + at, relaxed_p, mask=real)

    weights = _mix(drawn_q, drawn_p, tl.full((), share_q, DTYPE), tl.full((), share_p, DTYPE))
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_C, BLOCK_H), DTYPE)
    for start in range(0, K, BLOCK_C):
        some = start + tl.arange(0, BLOCK_C)
        weight = tl.gather(weights, some, 0)
        total = _add_product(weight[:, None], _tile(codebook, some, column, K, H, DTYPE), total)
    tl.store(z + row * H + column, tl.sum(total, 0), mask=column < H)


# fmt: off
@triton.jit
def backward_weights(
    d_z, codebook, d_mix,  # [B, H], [K, H] -> [B, K]
    K, H,
    DTYPE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):
    # fmt: on
    """Gradient of the mixed weights, d_z E^T. Program (b, t) makes BLOCK_C codes of pair b."""
    row = tl.program_id(0).to(tl.int64)
    some = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_H), DTYPE)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)
        slope = tl.load(d_z + row * H + column, mask=column < H, other=0.0).to(DTYPE)
        total = _add_product(slope[None, :], _tile(codebook, some, column, K, H, DTYPE), total)
    tl.store(d_mix + row * K + some, tl.sum(total, 1), mask=some < K)


# fmt: off
@triton.jit
def backward_inputs(
    logits_q, logits_p, weights_q, weights_p, soft_q, soft_p,  # [B, K]
    d_z, d_mix, d_kl, d_q, d_p, d_entropy_q, d_entropy_p, d_weights_q, d_weights_p,  # as their outputs; None: zero
    d_logits_q, d_logits_p, d_codebook,
    B, K, H, tau: tl.float64, share_q: tl.float64, share_p: tl.float64,
    DTYPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):
    # fmt: on
    """The first B programs make the logits' gradients of a pair each; those after them, if any, a tile of the codebook's."""
    program = tl.program_id(0)
    part_q, part_p = tl.full((), share_q, DTYPE), tl.full((), share_p, DTYPE)
    if program < B:
        code = tl.arange(0, BLOCK_K)
        real = code < K
        row = program.to(tl.int64)
        at = row * K + code
        log_q = _log_softmax(tl.load(logits_q + at, mask=real, other=float("-inf")).to(DTYPE))
        log_p = _log_softmax(tl.load(logits_p + at, mask=real, other=float("-inf")).to(DTYPE))
        q, p = tl.exp(log_q), tl.exp(log_p)
        # What a change of a log-probability is worth: by its own output, and by its part in the divergence and the entropies.
        slope_q, slope_p, direct = tl.zeros((BLOCK_K,), DTYPE), tl.zeros((BLOCK_K,), DTYPE), tl.zeros((BLOCK_K,), DTYPE)
        if d_kl is not None:
            slope_q += tl.load(d_kl + row) * (log_q - log_p)
            direct += tl.load(d_kl + row) * (p - q)
        if d_entropy_q is not None:
            slope_q -= tl.load(d_entropy_q + row) * log_q
        if d_entropy_p is not None:
            slope_p -= tl.load(d_entropy_p + row) * log_p
        if d_q is not None:
            slope_q += tl.load(d_q + at, mask=real, other=0.0)
        if d_p is not None:
            slope_p += tl.load(d_p + at, mask=real, other=0.0)
        temperature = tl.full((), tau, DTYPE)
        sampled_q = _sample_backward(soft_q, d_mix, d_weights_q, at, real, part_q, BLOCK_K, DTYPE) / temperature
        sampled_p = _sample_backward(soft_p, d_mix, d_weights_p, at, real, part_p, BLOCK_K, DTYPE) / temperature
        tl.store(d_logits_q + at, _softmax_backward(q, tl.where(real, slope_q, 0.0)) + sampled_q, mask=real)
        tl.store(d_logits_p + at, _softmax_backward(p, tl.where(real, slope_p, 0.0)) + direct + sampled_p, mask=real)
    elif d_z is not None:
        tile, across = program - B, tl.cdiv(H, BLOCK_H)
        some = tile // across * BLOCK_C + tl.arange(0, BLOCK_C)
        column = tile % across * BLOCK_H + tl.arange(0, BLOCK_H)
        total = tl.zeros((BLOCK_C, BLOCK_H), DTYPE)
        for pair in tl.range(0, B, loop_unroll_factor=4):
            # A plain number in the interpreter.
            row = tl.full((), pair, tl.int64)
            these = row * K + some
            drawn_q = tl.load(weights_q + these, mask=some < K, other=0.0)
            drawn_p = tl.load(weights_p + these, mask=some < K, other=0.0)
            weight = _mix(drawn_q, drawn_p, part_q, part_p)
            slope = tl.load(d_z + row * H + column, mask=column < H, other=0.0).to(DTYPE)
            total = _add_product(weight[:, None], slope[None, :], total)
        place = some.to(tl.int64)[:, None] * H + column[None, :]
        tl.store(d_codebook + place, total, mask=(some < K)[:, None] & (column < H)[None, :])


@triton.jit
def _add_product(left, right, total):
    """total + left * right, fused on purpose."""
    return tl.fma(tl.broadcast_to(left, total.shape), tl.broadcast_to(right, total.shape), total)


@triton.jit
def _tile(codebook, some, column, K, H, DTYPE: tl.constexpr):
    mask = (some < K)[:, None] & (column < H)[None, :]
    return tl.load(codebook + some.to(tl.int64)[:, None] * H + column[None, :], mask=mask, other=0.0).to(DTYPE)


@triton.jit
def _log_softmax(logits):
    shifted = logits - tl.max(logits, 0)
    return shifted - tl.log(tl.sum(tl.exp(shifted), 0))


@triton.jit
def _soften(noisy, tau):
    exponentials = tl.exp((noisy - tl.max(noisy, 0)) / tau)
    return exponentials / tl.sum(exponentials, 0)


@triton.jit
def _harden(soft, noisy, code):
    # The difference is zero, unless soft is not a number: then neither is the result.
    return tl.where(code == tl.argmax(noisy, 0), 1.0, 0.0).to(soft.dtype) + (soft - soft)


@triton.jit
def _mix(weights_q, weights_p, share_q, share_p):
    """At a share of exactly 0 the other side alone, whatever this one holds: a product with zero would let NaN and infinity through."""
    return tl.where(share_p == 0, weights_q, tl.where(share_q == 0, weights_p, share_q * weights_q + share_p * weights_p))


@triton.jit
def _softmax_backward(weights, slope):
    return weights * (slope - tl.sum(weights * slope, 0))


@triton.jit
def _sample_backward(soft, d_mix, d_weights, at, real, share, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    """tau times the gradient of the noisy logits."""
    weights = tl.load(soft + at, mask=real, other=0.0)
    slope = tl.zeros((BLOCK_K,), DTYPE)
    if d_mix is not None:
        slope += share * tl.load(d_mix + at, mask=real, other=0.0)
    if d_weights is not None:
        slope += tl.load(d_weights + at, mask=real, other=0.0)
    return _softmax_backward(weights, slope)
