# mypy: allow-untyped-defs
"""Triton kernels of `gumbel_mix`: one forward, two backward. No atomics, so two runs give the same bits.

Arguments are contiguous, with B pairs, K codes and hidden size H. Products with the codebook are sums of fp32 (fp64)
products, without matrix instructions: B is a handful and a codebook element is used once per pair, so reading the
codebook is what takes time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lpc_kernels.philox.constants import POSTERIOR_NOISE, PRIOR_NOISE
from lpc_kernels.philox.triton_kernels import gumbel

_POSTERIOR_NOISE = tl.constexpr(POSTERIOR_NOISE)
_PRIOR_NOISE = tl.constexpr(PRIOR_NOISE)
_VARYING = ("seed", "B")
"""Integers that Triton is not to compile another kernel for; those of the codebook make its loads wide."""
_VARYING_POINTERS = ("sample_ids", "kl", "entropy_q", "entropy_p", "d_kl", "d_entropy_q", "d_entropy_p")
"""Vectors [B], which may be views that start at any pair; an element is loaded at a time."""


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def forward(
    logits_q,  # [B, K]
    logits_p,  # [B, K]
    codebook,  # [K, H]
    sample_ids,  # [B] int64
    z,  # [B, H] out, and so are those below
    kl,  # [B]
    q,  # [B, K]
    p,  # [B, K]
    entropy_q,  # [B]
    entropy_p,  # [B]
    weights_q,  # [B, K]
    weights_p,  # [B, K]
    soft_q,  # [B, K] or None
    soft_p,  # [B, K] or None
    seed: tl.int64,
    K,
    H,
    tau: tl.float64,
    mix_q: tl.float64,
    mix_p: tl.float64,
    HARD: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Program (b, t) makes tile t of z[b]; those of t = 0 store everything else of pair b.

    Soft weights are stored only beside hard ones.
    """
    pair = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, BLOCK_K)
    is_code = code < K
    at = pair * K + code
    raw_q = tl.load(logits_q + at, mask=is_code, other=float("-inf")).to(DTYPE)
    raw_p = tl.load(logits_p + at, mask=is_code, other=float("-inf")).to(DTYPE)
    sample = tl.load(sample_ids + pair)
    noisy_q = raw_q + gumbel(sample, code, seed, _POSTERIOR_NOISE).to(DTYPE)
    noisy_p = raw_p + gumbel(sample, code, seed, _PRIOR_NOISE).to(DTYPE)
    temperature = tl.full((), tau, DTYPE)
    relaxed_q = _soften(noisy_q, temperature)
    relaxed_p = _soften(noisy_p, temperature)
    if HARD:
        drawn_q = _harden(relaxed_q, noisy_q, code)
        drawn_p = _harden(relaxed_p, noisy_p, code)
    else:
        drawn_q = relaxed_q
        drawn_p = relaxed_p

    if tl.program_id(1) == 0:
        log_q = _log_softmax(raw_q)
        log_p = _log_softmax(raw_p)
        chance_q = tl.exp(log_q)
        chance_p = tl.exp(log_p)
        tl.store(kl + pair, tl.sum(tl.where(is_code, chance_q * (log_q - log_p), 0.0), 0))
        tl.store(entropy_q + pair, -tl.sum(tl.where(is_code, chance_q * log_q, 0.0), 0))
        tl.store(entropy_p + pair, -tl.sum(tl.where(is_code, chance_p * log_p, 0.0), 0))
        tl.store(q + at, chance_q, mask=is_code)
        tl.store(p + at, chance_p, mask=is_code)
        tl.store(weights_q + at, drawn_q, mask=is_code)
        tl.store(weights_p + at, drawn_p, mask=is_code)
        if HARD:
            tl.store(soft_q + at, relaxed_q, mask=is_code)
            tl.store(soft_p + at, relaxed_p, mask=is_code)

    weights = _mix(drawn_q, drawn_p, tl.full((), mix_q, DTYPE), tl.full((), mix_p, DTYPE))
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_C, BLOCK_H), DTYPE)
    for start in range(0, K, BLOCK_C):
        some = start + tl.arange(0, BLOCK_C)
        weight = tl.gather(weights, some, 0)
        total = _add_product(weight[:, None], _tile(codebook, some, column, K, H, DTYPE), total)
    tl.store(z + pair * H + column, tl.sum(total, 0), mask=column < H)


@triton.jit
def backward_weights(
    d_z,  # [B, H]
    codebook,  # [K, H]
    d_mix,  # [B, K] out
    K,
    H,
    DTYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Gradient of the mixed weights, d_z E^T. Program (b, t) makes BLOCK_C codes of pair b."""
    pair = tl.program_id(0).to(tl.int64)
    some = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_H), DTYPE)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)
        slope = tl.load(d_z + pair * H + column, mask=column < H, other=0.0).to(DTYPE)
        total = _add_product(slope[None, :], _tile(codebook, some, column, K, H, DTYPE), total)
    tl.store(d_mix + pair * K + some, tl.sum(total, 1), mask=some < K)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def backward_inputs(
    logits_q,  # [B, K], and so are the next five
    logits_p,
    weights_q,
    weights_p,
    soft_q,
    soft_p,
    d_z,  # gradients, shaped as the outputs; None: zero
    d_mix,
    d_kl,
    d_q,
    d_p,
    d_entropy_q,
    d_entropy_p,
    d_weights_q,
    d_weights_p,
    d_logits_q,  # out, shaped as the inputs
    d_logits_p,
    d_codebook,
    B,
    K,
    H,
    tau: tl.float64,
    mix_q: tl.float64,
    mix_p: tl.float64,
    DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The first B programs make the gradients of a pair's logits each, those after them a tile of the codebook's each.

    Without `d_z` there are only the first B.
    """
    program = tl.program_id(0)
    mix_q = tl.full((), mix_q, DTYPE)
    mix_p = tl.full((), mix_p, DTYPE)
    if program < B:
        code = tl.arange(0, BLOCK_K)
        is_code = code < K
        pair = program.to(tl.int64)
        at = pair * K + code
        log_q = _log_softmax(tl.load(logits_q + at, mask=is_code, other=float("-inf")).to(DTYPE))
        log_p = _log_softmax(tl.load(logits_p + at, mask=is_code, other=float("-inf")).to(DTYPE))
        q = tl.exp(log_q)
        p = tl.exp(log_p)
        # Derivatives of the loss by q and p: through the outputs q and p, and through the divergence and the entropies.
        slope_q = tl.zeros((BLOCK_K,), DTYPE)
        slope_p = tl.zeros((BLOCK_K,), DTYPE)
        direct = tl.zeros((BLOCK_K,), DTYPE)
        if d_kl is not None:
            slope_q += tl.load(d_kl + pair) * (log_q - log_p)
            direct += tl.load(d_kl + pair) * (p - q)
        if d_entropy_q is not None:
            slope_q -= tl.load(d_entropy_q + pair) * log_q
        if d_entropy_p is not None:
            slope_p -= tl.load(d_entropy_p + pair) * log_p
        if d_q is not None:
            slope_q += tl.load(d_q + at, mask=is_code, other=0.0)
        if d_p is not None:
            slope_p += tl.load(d_p + at, mask=is_code, other=0.0)
        temperature = tl.full((), tau, DTYPE)
        sampled_q = _sample_backward(soft_q, d_mix, d_weights_q, at, is_code, mix_q, BLOCK_K, DTYPE) / temperature
        sampled_p = _sample_backward(soft_p, d_mix, d_weights_p, at, is_code, mix_p, BLOCK_K, DTYPE) / temperature
        tl.store(d_logits_q + at, _softmax_backward(q, tl.where(is_code, slope_q, 0.0)) + sampled_q, mask=is_code)
        tl.store(
            d_logits_p + at, _softmax_backward(p, tl.where(is_code, slope_p, 0.0)) + direct + sampled_p, mask=is_code
        )
    elif d_z is not None:
        tile = program - B
        across = tl.cdiv(H, BLOCK_H)
        some = tile // across * BLOCK_C + tl.arange(0, BLOCK_C)
        column = tile % across * BLOCK_H + tl.arange(0, BLOCK_H)
        total = tl.zeros((BLOCK_C, BLOCK_H), DTYPE)
        for number in tl.range(0, B, loop_unroll_factor=4):
            # A plain number in the interpreter.
            pair = tl.full((), number, tl.int64)
            these = pair * K + some
            drawn_q = tl.load(weights_q + these, mask=some < K, other=0.0)
            drawn_p = tl.load(weights_p + these, mask=some < K, other=0.0)
            weight = _mix(drawn_q, drawn_p, mix_q, mix_p)
            slope = tl.load(d_z + pair * H + column, mask=column < H, other=0.0).to(DTYPE)
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
def _mix(weights_q, weights_p, mix_q, mix_p):
    """The mixed weights; with a coefficient of exactly 0 only the other side, whatever values this one has.

    A product with zero would let NaN and infinity through.
    """
    mixed = mix_q * weights_q + mix_p * weights_p
    return tl.where(mix_p == 0, weights_q, tl.where(mix_q == 0, weights_p, mixed))


@triton.jit
def _softmax_backward(weights, slope):
    return weights * (slope - tl.sum(weights * slope, 0))


@triton.jit
def _sample_backward(soft, d_mix, d_weights, at, is_code, mix, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr):
    """tau times the gradient of the noisy logits."""
    weights = tl.load(soft + at, mask=is_code, other=0.0)
    slope = tl.zeros((BLOCK_K,), DTYPE)
    if d_mix is not None:
        slope += mix * tl.load(d_mix + at, mask=is_code, other=0.0)
    if d_weights is not None:
        slope += tl.load(d_weights + at, mask=is_code, other=0.0)
    return _softmax_backward(weights, slope)
