"""The noise in PyTorch, on any device.

Every step is integer arithmetic or one correctly rounded operation, so any machine that follows the order written
here, without contracting products and sums into FMAs, gets the same bits. Library logarithms promise no such thing,
hence the one below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpc_kernels.philox.constants import (
    KEY_STEPS,
    LN2,
    LOG_TERMS,
    MANTISSA,
    MASK_32,
    MULTIPLIERS,
    ONE,
    ROUNDS,
    SQRT2,
    UNIFORM_FLOOR,
    UNIFORM_SCALE,
)

Counter = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Counter, seed: int) -> Counter:
    """Philox 4x32-10 of four 32-bit counters (int64 tensors in [0, 2^32), broadcast together) under a 64-bit seed.

    Returns four random numbers, int64 in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK_32, seed >> 32
    for _ in range(ROUNDS):
        # The product of two 32-bit numbers may pass 2^63; int64 wraps around, so its bits are right and the mask drops
        # the sign.
        first = c0 * MULTIPLIERS[0]
        second = c2 * MULTIPLIERS[1]
        c0 = ((second >> 32) & MASK_32) ^ c1 ^ k0
        c2 = ((first >> 32) & MASK_32) ^ c3 ^ k1
        c1 = second & MASK_32
        c3 = first & MASK_32
        k0 = (k0 + KEY_STEPS[0]) & MASK_32
        k1 = (k1 + KEY_STEPS[1]) & MASK_32
    return c0, c1, c2, c3


def uniform(bits: Tensor) -> Tensor:
    """fp32 in [0, 1) from int64 in [0, 2^32): `triton.language.random.uint_to_uniform_float`, bit for bit."""
    # As a signed 32-bit number x: x itself, or -x - 1 where it is negative; in unsigned terms the complement.
    folded = torch.where(bits > 0x7FFFFFFF, MASK_32 - bits, bits)
    return folded.float() * UNIFORM_SCALE


def gumbel(sample_ids: Tensor, num_codes: int, seed: int, source: int) -> Tensor:
    """[B, num_codes] fp32 noise of samples [B], for arguments that are checked."""
    ids = sample_ids[:, None]
    code = torch.arange(num_codes, device=ids.device).expand(ids.size(0), num_codes)
    counter = (code, torch.full_like(code, source), ids & MASK_32, (ids >> 32) & MASK_32)
    u = uniform(philox(counter, seed)[0]).clamp_min(UNIFORM_FLOOR).double()
    return (-log(-log(u))).float()


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal fp64 numbers, to about 1e-14, from +, -, *, / and bit operations only.

    x = 2^e m with m in [sqrt(1/2), sqrt(2)); log m = 2 (s + s^3/3 + s^5/5 + ...) with s = (m - 1) / (m + 1), by Horner.
    """
    bits = x.view(torch.int64)
    exponent = (bits >> 52) - 1023
    m = ((bits & MANTISSA) | ONE).view(torch.float64)
    high = m > SQRT2
    m = torch.where(high, m * 0.5, m)
    exponent = exponent + high
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = torch.full_like(s, 1.0 / (2 * LOG_TERMS - 1))
    for n in range(LOG_TERMS - 2, -1, -1):
        series = series * square + 1.0 / (2 * n + 1)
    return exponent.double() * LN2 + 2.0 * s * series
