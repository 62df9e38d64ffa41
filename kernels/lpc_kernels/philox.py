"""Counter-based Gumbel noise: a function of (seed, sample, stream, code) and of nothing else.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the words

    key     = (seed low, seed high)
    counter = (code, stream, sample id low, sample id high)        low and high: 32 bits each, of a 64-bit number

of which the first output word becomes a uniform number exactly as `tl.rand` makes it from that word, and then Gumbel noise.
Every step is integer arithmetic or one correctly rounded operation, so any machine that follows the order written here, without
contracting products and sums into FMAs, gets the same bits. Library logarithms promise no such thing, hence the one below.
"""

from __future__ import annotations

import torch
from torch import Tensor

POSTERIOR_NOISE = 0
"""Stream of the noise on q(z | x, y_w > y_l)."""
PRIOR_NOISE = 1
"""Stream of the noise on p(z | x)."""

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

UNIFORM_SCALE = 4.6566127342e-10
UNIFORM_FLOOR = 2.0**-32

MANTISSA = (1 << 52) - 1
ONE = 1023 << 52
SQRT2 = 1.4142135623730951
LN2 = 0.6931471805599453
LOG_TERMS = 8


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 of four counter words (int64 tensors in [0, 2^32), broadcast together) under a 64-bit seed.

    Returns the four output words, int64 in [0, 2^32). Raises ValueError for a seed outside [0, 2^64).
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"philox: seed must be in [0, 2^64), got {seed}")
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, seed >> 32
    for _ in range(_ROUNDS):
        # The product of two words may pass 2^63; int64 wraps around, so its bits are right and the mask drops the sign.
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((right >> 32) & _WORD) ^ c1 ^ k0, ((left >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = right & _WORD, left & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def uniform(word: Tensor) -> Tensor:
    """fp32 in [0, 1) from an int64 word in [0, 2^32): `triton.language.random.uint_to_uniform_float`, bit for bit."""
    # As a signed word x: x itself, or -x - 1 where it is negative; in unsigned terms the complement of the word.
    folded = torch.where(word > 0x7FFFFFFF, _WORD - word, word)
    return folded.float() * UNIFORM_SCALE


def gumbel_noise(sample_ids: Tensor, num_codes: int, seed: int, stream: int) -> Tensor:
    """Gumbel(0, 1) noise of `num_codes` codes for each sample.

    sample_ids: [B] int64. stream: `POSTERIOR_NOISE` or `PRIOR_NOISE`. Returns [B, num_codes] fp32 on the device of the ids,
    finite: -log(-log u) with u = 0 (one case in 2^31) raised to 2^-32, logarithms in fp64, the result rounded once to fp32.
    Raises ValueError for ids that are not a vector of int64, for fewer than one code, an unknown stream or a seed beyond 64 bits.
    """
    if sample_ids.dim() != 1 or sample_ids.dtype != torch.int64:
        raise ValueError(f"gumbel_noise: sample_ids must be [B] int64, got {list(sample_ids.shape)} {sample_ids.dtype}")
    if num_codes < 1:
        raise ValueError(f"gumbel_noise: num_codes must be at least 1, got {num_codes}")
    if stream not in (POSTERIOR_NOISE, PRIOR_NOISE):
        raise ValueError(
            f"gumbel_noise: stream must be {POSTERIOR_NOISE} (posterior) or {PRIOR_NOISE} (prior), got {stream}"
        )
    ids = sample_ids[:, None]
    code = torch.arange(num_codes, device=ids.device).expand(ids.size(0), num_codes)
    word = philox((code, torch.full_like(code, stream), ids & _WORD, (ids >> 32) & _WORD), seed)[0]
    u = uniform(word).clamp_min(UNIFORM_FLOOR).double()
    return (-_log(-_log(u))).float()


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal fp64 numbers, to about 1e-14, from +, -, *, / and bit operations alone.

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
