# mypy: allow-untyped-defs
"""Triton kernels of `pair_logps`: statistics and gradient of logits that are in memory, and statistics of logits that never are.

C rows of a chunk, V words of this rank, L latents, P pairs, R runs (see `runs.py`). LATENTS is the next power of two of L; `stride` is
from row to row of [C, V]; `rate` is 1 / temperature. Sums within a row and over the rows of a pair are made in a fixed order, without
atomics, so two runs give the same bits. Offsets into [C, V], [V, H] and [L, P, V] are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cap(logits, softcap, rate, CAPPED: tl.constexpr):
    """cap(logits) / temperature, with tanh(x) = 2 / (1 + exp(-2 x)) - 1: Triton's interpreter has no tanh."""
    if CAPPED:
        logits = softcap * (2.0 / (1.0 + tl.exp(logits * (-2.0 / softcap))) - 1.0)
    return logits * rate


# fmt: off
@triton.jit
def row_stats(
    base, bias, targets, run_of_row, pair_of_run, stats,  # [C, V], [L, P, V] or None, [C] columns or -1, [C] int32, [R], [S, L, C]
    C, V, L, P, stride, softcap: tl.float64, rate: tl.float64,
    ENTROPY: tl.constexpr, CAPPED: tl.constexpr, DTYPE: tl.constexpr, LATENTS: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """One program a row: the softmax online over tiles of words, for all latents at once."""
    row = tl.program_id(0).to(tl.int64)
    latent = tl.arange(0, LATENTS).to(tl.int64)
    real = latent < L
    softcap, rate = tl.full((), softcap, DTYPE), tl.full((), rate, DTYPE)
    start = base + row * stride
    pair = tl.load(pair_of_run + tl.load(run_of_row + row))
    shift = (latent * P + pair) * V

    peak = tl.full((LATENTS,), float("-inf"), DTYPE)
    total = tl.zeros((LATENTS,), DTYPE)
    weighted = tl.zeros((LATENTS,), DTYPE)
    for first in range(0, V, BLOCK_V):
        word = first + tl.arange(0, BLOCK_V)
        fits = (word < V)[None, :]
        logits = tl.load(start + word, mask=word < V, other=0.0).to(DTYPE)[None, :] + tl.zeros((LATENTS, 1), DTYPE)
        if bias is not None:
            logits += tl.load(bias + shift[:, None] + word[None, :], mask=real[:, None] & fits, other=0.0)
        logits = tl.where(fits, _cap(logits, softcap, rate, CAPPED), float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        moved = peak - higher
        fade = tl.exp(moved)
        shifted = logits - higher[:, None]
        weights = tl.exp(shifted)
        if ENTROPY:
            # In the first tile the move is from -inf, of nothing.
            weighted = fade * (weighted + tl.where(total > 0, moved, 0.0) * total)
            weighted += tl.sum(weights * tl.where(fits, shifted, 0.0), 1)
        total = fade * total + tl.sum(weights, 1)
        peak = higher

    column = tl.load(targets + row)
    found = tl.load(start + column, mask=column >= 0, other=0.0).to(DTYPE) + tl.zeros((LATENTS,), DTYPE)
    if bias is not None:
        found += tl.load(bias + shift + column, mask=real & (column >= 0), other=0.0)
    found = tl.where(column >= 0, _cap(found, softcap, rate, CAPPED), float("-inf"))
    out = stats + latent * C + row
    step = tl.cast(C, tl.int64) * L
    tl.store(out, peak, mask=real)
    tl.store(out + step, total, mask=real)
    tl.store(out + 2 * step, found, mask=real)
    if ENTROPY:
        tl.store(out + 3 * step, weighted, mask=real)


# fmt: off
@triton.jit
def logits_gradient(
    base, bias, targets, edges, pair_of_run, peak, total, scale, d_bias,  # as above; [R + 1]; [L, C]; [L, C]; [L, C]; [L, P, V] or None
    C, V, L, P, R, stride, first_row, softcap: tl.float64, rate: tl.float64,
    CAPPED: tl.constexpr, DTYPE: tl.constexpr, LATENTS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):
    # fmt: on
    """Program (t, p): tile t of words of all rows of pair p in the chunk, which starts at row `first_row`. In place."""
    word = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    pair = tl.program_id(1)
    latent = tl.arange(0, LATENTS)
    real, fits = latent < L, word < V
    softcap, rate = tl.full((), softcap, DTYPE), tl.full((), rate, DTYPE)
    own = (latent * P + pair).to(tl.int64)[:, None] * V + word[None, :]
    added = tl.zeros((LATENTS, BLOCK_V), DTYPE)
    if bias is not None:
        added += tl.load(bias + own, mask=real[:, None] & fits[None, :], other=0.0)
    summed = tl.zeros((LATENTS, BLOCK_V), DTYPE)
    for run in range(R):
        if tl.load(pair_of_run + run) == pair:
            start = tl.maximum(tl.load(edges + run) - first_row, 0).to(tl.int32)
            stop = tl.minimum(tl.load(edges + run + 1) - first_row, C).to(tl.int32)
            for first in range(start, stop, BLOCK_C):
                row = first + tl.arange(0, BLOCK_C)
                there = row < stop
                # 64 bits for the block's first row alone, for fewer registers.
                place = base + tl.cast(first, tl.int64) * stride + (tl.arange(0, BLOCK_C)[:, None] * stride + word[None, :])
                inside = there[:, None] & fits[None, :]
                at = latent[:, None] * C + row[None, :]
                known = real[:, None] & there[None, :]
                high = tl.load(peak + at, mask=known, other=0.0)
                factor = tl.load(scale + at, mask=known, other=0.0)
                share = factor / tl.load(total + at, mask=known, other=1.0)
                column = tl.load(targets + row, mask=there, other=-1)
                logits = tl.load(place, mask=inside, other=0.0).to(DTYPE)[None, :, :] + added[:, None, :]
                logits = _cap(logits, softcap, rate, CAPPED)
                # d log p[target] = onehot - p, times the coefficient, while still in fp32: bf16 would lose a small 1 - p.
                hit = (column[:, None] == word[None, :])[None, :, :]
                gradient = tl.where(hit, factor[:, :, None], 0.0) - share[:, :, None] * tl.exp(logits - high[:, :, None])
                if CAPPED:
                    bend = logits * (1.0 / (rate * softcap))
                    gradient *= 1.0 - bend * bend
                # What is not there has a logit of 0, whose exponential may be infinite.
                gradient = tl.where(known[:, :, None] & fits[None, None, :], gradient * rate, 0.0)
                summed += tl.sum(gradient, 1)
                tl.store(place, tl.sum(gradient, 0).to(base.dtype.element_ty), mask=inside)
    if d_bias is not None:
        keep = real[:, None] & fits[None, :]
        tl.store(d_bias + own, tl.load(d_bias + own, mask=keep, other=0.0) + summed, mask=keep)


# fmt: off
@triton.jit
def fused_stats(
    hidden, weight, bias, targets, run_of_row, edges, pair_of_run, stats,  # [C, H], [V, H], as above; [tiles of words, S, L, C]
    C, V, H, L, P, hidden_stride, weight_stride, first_row, softcap: tl.float64, rate: tl.float64,
    ENTROPY: tl.constexpr, CAPPED: tl.constexpr, EVEN_H: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, STAGES: tl.constexpr,
):
    # fmt: on
    """Program (r, t): h W^T of tile r of rows and tile t of words, in registers, and its part of the statistics of every latent.

    Neighbouring programs share words, so that the head is read from memory once a chunk.
    """
    top = tl.program_id(0) * BLOCK_C
    tile = tl.program_id(1)
    row, word = top + tl.arange(0, BLOCK_C), tile * BLOCK_V + tl.arange(0, BLOCK_V)
    there, fits = row < C, word < V
    # Beyond the edge the last row and word are read again: no mask in the loop.
    left = hidden + tl.minimum(row, C - 1).to(tl.int64)[:, None] * hidden_stride
    right = weight + tl.minimum(word, V - 1).to(tl.int64)[None, :] * weight_stride
    logits = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
    for first in tl.range(0, H, BLOCK_H, num_stages=STAGES):
        place = first + tl.arange(0, BLOCK_H)
        if EVEN_H:
            a, b = tl.load(left + place[None, :]), tl.load(right + place[:, None])
        else:
            a = tl.load(left + place[None, :], mask=(place < H)[None, :], other=0.0)
            b = tl.load(right + place[:, None], mask=(place < H)[:, None], other=0.0)
        logits = tl.dot(a, b, logits, input_precision="ieee")
    # Rounded as in training, where it goes through memory: a policy that is still its reference differs by the rounding of sums alone.
    logits = logits.to(hidden.dtype.element_ty).to(tl.float32)

    softcap, rate = tl.full((), softcap, tl.float32), tl.full((), rate, tl.float32)
    column = tl.load(targets + row, mask=there, other=-1)
    begin = tl.load(run_of_row + top)
    end = tl.load(run_of_row + tl.minimum(top + BLOCK_C, C) - 1) + 1
    step = tl.cast(C, tl.int64) * L
    out = stats + tl.cast(tile, tl.int64) * (4 if ENTROPY else 3) * step + row
    for latent in range(L):
        moved = logits
        if bias is not None:
            for run in range(begin, end):
                inside = (row >= tl.load(edges + run) - first_row) & (row < tl.load(edges + run + 1) - first_row)
                own = (tl.load(pair_of_run + run) + latent * P) * V
                added = tl.load(bias + own + word, mask=fits, other=0.0)
                moved += tl.where(inside[:, None], added[None, :], 0.0)
        moved = tl.where(fits[None, :], _cap(moved, softcap, rate, CAPPED), float("-inf"))
        peak = tl.max(moved, 1)
        found = tl.max(tl.where((word[None, :] == column[:, None]) & fits[None, :], moved, float("-inf")), 1)
        shifted = moved - peak[:, None]
        weights = tl.exp(shifted)
        tl.store(out, peak, mask=there)
        tl.store(out + step, tl.sum(weights, 1), mask=there)
        tl.store(out + 2 * step, found, mask=there)
        if ENTROPY:
            tl.store(out + 3 * step, tl.sum(weights * tl.where(fits[None, :], shifted, 0.0), 1), mask=there)
        out += C
