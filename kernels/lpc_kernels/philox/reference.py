"""The noise by its definition, one number at a time in plain Python.

What the other files must agree with; for tests, not for use.
"""

from __future__ import annotations

import math

import torch

from lpc_kernels.philox.constants import (
    KEY_STEPS,
    MASK_32,
    MULTIPLIERS,
    ROUNDS,
    UNIFORM_FLOOR,
    UNIFORM_SCALE,
)


def philox_reference(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Philox 4x32-10 of four 32-bit counters under a 64-bit seed (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    key_low, key_high = seed & MASK_32, seed >> 32
    for _ in range(ROUNDS):
        first = c0 * MULTIPLIERS[0]
        second = c2 * MULTIPLIERS[1]
        c0 = (second >> 32) ^ c1 ^ key_low
        c1 = second & MASK_32
        c2 = (first >> 32) ^ c3 ^ key_high
        c3 = first & MASK_32
        key_low = (key_low + KEY_STEPS[0]) & MASK_32
        key_high = (key_high + KEY_STEPS[1]) & MASK_32
    return c0, c1, c2, c3


def gumbel_reference(sample_id: int, code: int, seed: int, source: int) -> float:
    """Gumbel(0, 1) noise in fp64: equal to `gumbel_noise` up to that one's rounding to fp32.

    The logarithm is the C library's.
    """
    counter = (code, source, sample_id & MASK_32, (sample_id >> 32) & MASK_32)
    bits = philox_reference(counter, seed)[0]
    if bits >= 1 << 31:
        # A negative number x in two's complement stands for -x - 1.
        bits = MASK_32 - bits
    uniform = float(torch.tensor(bits).float() * UNIFORM_SCALE)
    return -math.log(-math.log(max(uniform, UNIFORM_FLOOR)))
