"""Numbers that every implementation of the noise shares, to the bit."""

from __future__ import annotations

POSTERIOR_NOISE = 0
"""Second counter of the noise on q(z | x, y_w > y_l)."""
PRIOR_NOISE = 1
"""Second counter of the noise on p(z | x)."""

MASK_32 = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

UNIFORM_SCALE = 4.6566127342e-10
"""As in `triton.language.random.uint_to_uniform_float`."""
UNIFORM_FLOOR = 2.0**-32

MANTISSA = (1 << 52) - 1
"""Bits of the mantissa of an fp64 number."""
ONE = 1023 << 52
"""Bits of 1.0 in fp64."""
SQRT2 = 1.4142135623730951
LN2 = 0.6931471805599453
LOG_TERMS = 8
"""Terms of the series of the logarithm."""
