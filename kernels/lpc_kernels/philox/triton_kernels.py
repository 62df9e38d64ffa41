# mypy: allow-untyped-defs
"""The noise of `pytorch_backend.py` inside Triton kernels, to the last bit.

Integer arithmetic is the same everywhere. The logarithm is sums, products and quotients in fp64, each rounded once, as
long as the compiler fuses none of them: kernels that call `gumbel` must be launched with `enable_fp_fusion=False`, and
say `tl.fma` where they want one. `inspect_kernels.py` looks for fused fp64 operations in what the compiler made.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lpc_kernels.philox import constants

_UNIFORM_SCALE = tl.constexpr(constants.UNIFORM_SCALE)
_UNIFORM_FLOOR = tl.constexpr(constants.UNIFORM_FLOOR)
_MANTISSA = tl.constexpr(constants.MANTISSA)
_ONE = tl.constexpr(constants.ONE)
_SQRT2 = tl.constexpr(constants.SQRT2)
_LN2 = tl.constexpr(constants.LN2)
_LOG_TERMS = tl.constexpr(constants.LOG_TERMS)


@triton.jit
def gumbel(sample_id, code, seed, SOURCE: tl.constexpr):
    """fp32 noise of codes (int32 block) of a sample (int64 scalar) under a seed (int64 scalar).

    The seed has the bits of the unsigned 64-bit number.
    """
    low = sample_id.to(tl.int32)
    high = (sample_id >> 32).to(tl.int32)
    # The interpreter takes a small seed for an int32.
    random, _, _, _ = tl.philox(tl.full((), seed, tl.int64), code, SOURCE, low, high)
    random = random.to(tl.int32, bitcast=True)
    u = tl.where(random < 0, -random - 1, random).to(tl.float32) * _UNIFORM_SCALE
    u = tl.maximum(u, _UNIFORM_FLOOR).to(tl.float64)
    return (-_log(-_log(u))).to(tl.float32)


@triton.jit
def _log(x):
    """`pytorch_backend.log`, operation by operation."""
    bits = x.to(tl.int64, bitcast=True)
    m = ((bits & _MANTISSA) | _ONE).to(tl.float64, bitcast=True)
    high = m > _SQRT2
    m = tl.where(high, m * 0.5, m)
    exponent = (bits >> 52) - 1023 + high.to(tl.int64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = tl.full(s.shape, 1.0 / (2 * _LOG_TERMS - 1), tl.float64)
    for n in tl.static_range(_LOG_TERMS - 2, -1, -1):
        series = series * square + 1.0 / (2 * n + 1)
    return exponent.to(tl.float64) * _LN2 + 2.0 * s * series
