# mypy: allow-untyped-defs
"""Triton kernels of `pair_logps`: statistics and gradient of logits in memory, and statistics of logits that never are.

The letters of shapes are those of `problem.py`, and also the names of the arguments with these sizes. LATENTS is the
next power of two of L, or of as many latents as a program takes at a time. `product` is h W^T, [C, V], with `stride`
from token to token. `rate` is 1 / temperature.

Triton compiles a kernel for each combination of arguments that are 1, divisible by 16 or neither. Sizes and pointers
that differ from chunk to chunk are exempt (`_VARYING`, `_VARYING_POINTERS`), or training would stop to compile for
seconds at any step; those that make loads of the vocabulary and of the hidden states wide are not.

Sums over the vocabulary and over the tokens of a pair are made in a fixed order, without atomics, so two runs give the
same bits. Offsets into [C, V], [V, H] and [L, P, V] are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

_VARYING = ("C", "P", "S", "first_token")
"""Integers that differ between the chunks of a run."""
_VARYING_POINTERS = (
    *("targets", "segment_ids", "cu_seqlens", "pair_of_segment"),
    *("running_max", "running_sum", "scale"),
    "L",
)
"""Arguments whose divisibility by 16 differs, such as views that start at any token; no wide load depends on them."""


@triton.jit
def _cap(logits, softcap, rate, CAPPED: tl.constexpr):
    """cap(logits) / temperature, with tanh(x) = 2 / (1 + exp(-2 x)) - 1: Triton's interpreter has no tanh."""
    if CAPPED:
        logits = softcap * (2.0 / (1.0 + tl.exp(logits * (-2.0 / softcap))) - 1.0)
    return logits * rate


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def token_stats(
    product,  # [C, V]
    bias,  # [L, P, V] or None
    targets,  # [C] int64 index in the shard, or -1
    segment_ids,  # [C] int32
    pair_of_segment,  # [S] int64
    stats,  # [3 or 4, L, C] out
    C,
    V,
    L,
    P,
    stride,
    softcap: tl.float64,
    rate: tl.float64,
    ENTROPY: tl.constexpr,
    CAPPED: tl.constexpr,
    DTYPE: tl.constexpr,
    LATENTS: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Program (c, g): token c under latents of group g, the online softmax over tiles of the vocabulary."""
    token = tl.program_id(0).to(tl.int64)
    latent = (tl.program_id(1) * LATENTS + tl.arange(0, LATENTS)).to(tl.int64)
    is_latent = latent < L
    softcap = tl.full((), softcap, DTYPE)
    rate = tl.full((), rate, DTYPE)
    start = product + token * stride
    pair = tl.load(pair_of_segment + tl.load(segment_ids + token))
    bias_start = (latent * P + pair) * V

    m = tl.full((LATENTS,), float("-inf"), DTYPE)
    total = tl.zeros((LATENTS,), DTYPE)
    weighted = tl.zeros((LATENTS,), DTYPE)
    for first in range(0, V, BLOCK_V):
        vocab = first + tl.arange(0, BLOCK_V)
        in_vocab = (vocab < V)[None, :]
        tile = tl.load(start + vocab, mask=vocab < V, other=0.0).to(DTYPE)
        logits = tile[None, :] + tl.zeros((LATENTS, 1), DTYPE)
        if bias is not None:
            mask = is_latent[:, None] & in_vocab
            logits += tl.load(bias + bias_start[:, None] + vocab[None, :], mask=mask, other=0.0)
        logits = tl.where(in_vocab, _cap(logits, softcap, rate, CAPPED), float("-inf"))
        m_new = tl.maximum(m, tl.max(logits, 1))
        shift = m - m_new
        alpha = tl.exp(shift)
        shifted = logits - m_new[:, None]
        exponentials = tl.exp(shifted)
        if ENTROPY:
            # In the first tile the shift is from -inf, and there is no sum yet to shift.
            weighted = alpha * (weighted + tl.where(total > 0, shift, 0.0) * total)
            weighted += tl.sum(exponentials * tl.where(in_vocab, shifted, 0.0), 1)
        total = alpha * total + tl.sum(exponentials, 1)
        m = m_new

    target = tl.load(targets + token)
    is_here = target >= 0
    target_logit = tl.load(start + target, mask=is_here, other=0.0).to(DTYPE) + tl.zeros((LATENTS,), DTYPE)
    if bias is not None:
        target_logit += tl.load(bias + bias_start + target, mask=is_latent & is_here, other=0.0)
    target_logit = tl.where(is_here, _cap(target_logit, softcap, rate, CAPPED), float("-inf"))
    out = stats + latent * C + token
    step = tl.cast(C, tl.int64) * L
    tl.store(out, m, mask=is_latent)
    tl.store(out + step, total, mask=is_latent)
    tl.store(out + 2 * step, target_logit, mask=is_latent)
    if ENTROPY:
        tl.store(out + 3 * step, weighted, mask=is_latent)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def logits_gradient(
    product,  # [C, V] in and out
    bias,  # [L, P, V] or None
    targets,  # [C] int64 index in the shard, or -1
    cu_seqlens,  # [S + 1] int64
    pair_of_segment,  # [S] int64
    running_max,  # [L, C]
    running_sum,  # [L, C]
    scale,  # [L, C]
    d_bias,  # [L, P, V] added to, or None
    C,
    V,
    L,
    P,
    S,
    stride,
    first_token,
    softcap: tl.float64,
    rate: tl.float64,
    CAPPED: tl.constexpr,
    STORE: tl.constexpr,
    DTYPE: tl.constexpr,
    LATENTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Program (t, p): tile t of the vocabulary for all tokens of pair p in the chunk, in place.

    The chunk starts at loss token `first_token`. STORE: the gradient of the product is written, not that of the bias
    alone.
    """
    vocab = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    pair = tl.program_id(1)
    latent = tl.arange(0, LATENTS)
    is_latent = latent < L
    in_vocab = vocab < V
    softcap = tl.full((), softcap, DTYPE)
    rate = tl.full((), rate, DTYPE)
    bias_offset = (latent * P + pair).to(tl.int64)[:, None] * V + vocab[None, :]
    bias_mask = is_latent[:, None] & in_vocab[None, :]
    added = tl.zeros((LATENTS, BLOCK_V), DTYPE)
    if bias is not None:
        added += tl.load(bias + bias_offset, mask=bias_mask, other=0.0)
    summed = tl.zeros((LATENTS, BLOCK_V), DTYPE)
    for segment in range(S):
        if tl.load(pair_of_segment + segment) == pair:
            start = tl.maximum(tl.load(cu_seqlens + segment) - first_token, 0).to(tl.int32)
            stop = tl.minimum(tl.load(cu_seqlens + segment + 1) - first_token, C).to(tl.int32)
            for first in range(start, stop, BLOCK_C):
                token = first + tl.arange(0, BLOCK_C)
                in_segment = token < stop
                # 64 bits only for the block's first token, for fewer registers.
                offset = tl.arange(0, BLOCK_C)[:, None] * stride + vocab[None, :]
                place = product + tl.cast(first, tl.int64) * stride + offset
                mask = in_segment[:, None] & in_vocab[None, :]
                at = latent[:, None] * C + token[None, :]
                known = is_latent[:, None] & in_segment[None, :]
                m = tl.load(running_max + at, mask=known, other=0.0)
                factor = tl.load(scale + at, mask=known, other=0.0)
                normalised = factor / tl.load(running_sum + at, mask=known, other=1.0)
                target = tl.load(targets + token, mask=in_segment, other=-1)
                logits = tl.load(place, mask=mask, other=0.0).to(DTYPE)[None, :, :] + added[:, None, :]
                logits = _cap(logits, softcap, rate, CAPPED)
                # d log p[target] = onehot - p, times the scale, while still in fp32: bf16 would lose a small 1 - p.
                is_target = (target[:, None] == vocab[None, :])[None, :, :]
                probability = normalised[:, :, None] * tl.exp(logits - m[:, :, None])
                gradient = tl.where(is_target, factor[:, :, None], 0.0) - probability
                if CAPPED:
                    tanh = logits * (1.0 / (rate * softcap))
                    gradient *= 1.0 - tanh * tanh
                # Masked elements have a logit of 0, whose exponential may be infinite.
                gradient = tl.where(known[:, :, None] & in_vocab[None, None, :], gradient * rate, 0.0)
                summed += tl.sum(gradient, 1)
                if STORE:
                    tl.store(place, tl.sum(gradient, 0).to(product.dtype.element_ty), mask=mask)
    if d_bias is not None:
        before = tl.load(d_bias + bias_offset, mask=bias_mask, other=0.0)
        tl.store(d_bias + bias_offset, before + summed, mask=bias_mask)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def many_latents_gradient(
    product,  # [C, V] in and out
    bias,  # [L, P, V]
    targets,  # [C] int64 index in the shard, or -1
    cu_seqlens,  # [S + 1] int64
    pair_of_segment,  # [S] int64
    running_max,  # [L, C]
    running_sum,  # [L, C]
    scale,  # [L, C]
    d_bias,  # [L, P, V] added to, or None
    C,
    V,
    L,
    P,
    S,
    stride,
    first_token,
    softcap: tl.float64,
    rate: tl.float64,
    CAPPED: tl.constexpr,
    STORE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """`logits_gradient` latent by latent, for more of them than registers hold."""
    vocab = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    pair = tl.program_id(1)
    in_vocab = vocab < V
    softcap = tl.full((), softcap, DTYPE)
    rate = tl.full((), rate, DTYPE)
    for segment in range(S):
        if tl.load(pair_of_segment + segment) == pair:
            start = tl.maximum(tl.load(cu_seqlens + segment) - first_token, 0).to(tl.int32)
            stop = tl.minimum(tl.load(cu_seqlens + segment + 1) - first_token, C).to(tl.int32)
            for first in range(start, stop, BLOCK_C):
                token = first + tl.arange(0, BLOCK_C)
                in_segment = token < stop
                offset = tl.arange(0, BLOCK_C)[:, None] * stride + vocab[None, :]
                place = product + tl.cast(first, tl.int64) * stride + offset
                mask = in_segment[:, None] & in_vocab[None, :]
                tile = tl.load(place, mask=mask, other=0.0).to(DTYPE)
                target = tl.load(targets + token, mask=in_segment, other=-1)
                is_target = target[:, None] == vocab[None, :]
                total = tl.zeros((BLOCK_C, BLOCK_V), DTYPE)
                for latent in range(L):
                    at = tl.cast(latent, tl.int64) * C + token
                    of_bias = (tl.cast(latent, tl.int64) * P + pair) * V + vocab
                    m = tl.load(running_max + at, mask=in_segment, other=0.0)
                    factor = tl.load(scale + at, mask=in_segment, other=0.0)
                    normalised = factor / tl.load(running_sum + at, mask=in_segment, other=1.0)
                    logits = tile + tl.load(bias + of_bias, mask=in_vocab, other=0.0)[None, :]
                    logits = _cap(logits, softcap, rate, CAPPED)
                    probability = normalised[:, None] * tl.exp(logits - m[:, None])
                    gradient = tl.where(is_target, factor[:, None], 0.0) - probability
                    if CAPPED:
                        tanh = logits * (1.0 / (rate * softcap))
                        gradient *= 1.0 - tanh * tanh
                    gradient = tl.where(mask, gradient * rate, 0.0)
                    total += gradient
                    if d_bias is not None:
                        before = tl.load(d_bias + of_bias, mask=in_vocab, other=0.0)
                        tl.store(d_bias + of_bias, before + tl.sum(gradient, 0), mask=in_vocab)
                if d_bias is not None:
                    # The next block of tokens adds to what this one has written, perhaps in other threads.
                    tl.debug_barrier()
                if STORE:
                    tl.store(place, total.to(product.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_VARYING_POINTERS)
def fused_stats(
    hidden,  # [C, H]
    weight,  # [V, H]
    bias,  # [L, P, V] or None
    targets,  # [C] int64 index in the shard, or -1
    segment_ids,  # [C] int32
    cu_seqlens,  # [S + 1] int64
    pair_of_segment,  # [S] int64
    stats,  # [tiles of the vocabulary, 3 or 4, L, C] out
    C,
    V,
    H,
    L,
    P,
    hidden_stride,
    weight_stride,
    first_token,
    softcap: tl.float64,
    rate: tl.float64,
    ENTROPY: tl.constexpr,
    CAPPED: tl.constexpr,
    EVEN_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (c, t): h W^T of tile c of the tokens and tile t of the vocabulary, and its statistics for every latent.

    The tile of logits stays in registers. Neighbouring programs share a tile of the vocabulary, so that the LM
    head is read from memory once per chunk.
    """
    top = tl.program_id(0) * BLOCK_C
    tile = tl.program_id(1)
    token = top + tl.arange(0, BLOCK_C)
    vocab = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    is_token, in_vocab = token < C, vocab < V
    # Beyond the edge the last token and entry are read again: no mask in the loop.
    left = hidden + tl.minimum(token, C - 1).to(tl.int64)[:, None] * hidden_stride
    right = weight + tl.minimum(vocab, V - 1).to(tl.int64)[None, :] * weight_stride
    logits = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
    for first in tl.range(0, H, BLOCK_H, num_stages=STAGES):
        place = first + tl.arange(0, BLOCK_H)
        if EVEN_H:
            a = tl.load(left + place[None, :])
            b = tl.load(right + place[:, None])
        else:
            a = tl.load(left + place[None, :], mask=(place < H)[None, :], other=0.0)
            b = tl.load(right + place[:, None], mask=(place < H)[:, None], other=0.0)
        logits = tl.dot(a, b, logits, input_precision="ieee")
    # Rounded as in training, where they go through memory: a policy equal to its reference then differs only by the
    # rounding of sums.
    logits = logits.to(hidden.dtype.element_ty).to(tl.float32)

    softcap = tl.full((), softcap, tl.float32)
    rate = tl.full((), rate, tl.float32)
    target = tl.load(targets + token, mask=is_token, other=-1)
    first_segment = tl.load(segment_ids + top)
    last_segment = tl.load(segment_ids + tl.minimum(top + BLOCK_C, C) - 1)
    step = tl.cast(C, tl.int64) * L
    out = stats + tl.cast(tile, tl.int64) * (4 if ENTROPY else 3) * step + token
    for latent in range(L):
        moved = logits
        if bias is not None:
            for segment in range(first_segment, last_segment + 1):
                from_start = token >= tl.load(cu_seqlens + segment) - first_token
                before_end = token < tl.load(cu_seqlens + segment + 1) - first_token
                bias_start = (tl.load(pair_of_segment + segment) + latent * P) * V
                added = tl.load(bias + bias_start + vocab, mask=in_vocab, other=0.0)
                moved += tl.where((from_start & before_end)[:, None], added[None, :], 0.0)
        moved = tl.where(in_vocab[None, :], _cap(moved, softcap, rate, CAPPED), float("-inf"))
        m = tl.max(moved, 1)
        is_target = (vocab[None, :] == target[:, None]) & in_vocab[None, :]
        target_logit = tl.max(tl.where(is_target, moved, float("-inf")), 1)
        shifted = moved - m[:, None]
        exponentials = tl.exp(shifted)
        tl.store(out, m, mask=is_token)
        tl.store(out + step, tl.sum(exponentials, 1), mask=is_token)
        tl.store(out + 2 * step, target_logit, mask=is_token)
        if ENTROPY:
            weighted = tl.sum(exponentials * tl.where(in_vocab[None, :], shifted, 0.0), 1)
            tl.store(out + 3 * step, weighted, mask=is_token)
        out += C
