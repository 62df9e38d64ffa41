"""The per-token work in Triton: blocks and warps, and the launches. Importing this module needs Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpc_kernels.pair_logps import triton_kernels as kernels
from lpc_kernels.pair_logps.backend import LogpsGradient, stats_of_logits
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.softmax_stats import merge_stats, stats_without_vocabulary
from lpc_kernels.pair_logps.vocab_shard import VocabShard

_TRITON_TYPES = {torch.float64: tl.float64, torch.float32: tl.float32}
_FUSED_16_BIT = {"BLOCK_C": 128, "BLOCK_V": 128, "BLOCK_H": 64, "STAGES": 3, "num_warps": 8}
_FUSED_32_BIT = {"BLOCK_C": 64, "BLOCK_V": 64, "BLOCK_H": 32, "STAGES": 2, "num_warps": 4}


LATENTS_AT_A_TIME = 16
"""Of a program that keeps a row or a tile for each of them in registers."""
_FUSED_TOKENS = 16384
"""Latents times tokens of one launch of `fused_stats`, whose statistics of tiles grow with both: 4096 under 4."""


def stats_blocks(num_latents: int) -> dict[str, int]:
    """Blocks of `token_stats` for L latents."""
    latents = min(triton.next_power_of_2(num_latents), LATENTS_AT_A_TIME)
    return {"LATENTS": latents, "BLOCK_V": max(256, 4096 // latents), "num_warps": 8}


def gradient_blocks(num_latents: int) -> dict[str, int]:
    """Blocks of `logits_gradient`, or of `many_latents_gradient`, for L latents."""
    if num_latents > LATENTS_AT_A_TIME:
        return {"BLOCK_C": 8, "BLOCK_V": 256, "num_warps": 8}
    latents = triton.next_power_of_2(num_latents)
    return {"LATENTS": latents, "BLOCK_C": max(1, 8 // latents), "BLOCK_V": 256, "num_warps": 8}


def fused_blocks(dtype: torch.dtype) -> dict[str, int]:
    """Blocks of `fused_stats`; fp32 takes twice the shared memory, and has no matrix instructions anyway."""
    return _FUSED_16_BIT if dtype.itemsize == 2 else _FUSED_32_BIT


class TritonBackend:
    """`Backend` in Triton, on a GPU or in Triton's interpreter."""

    def works_in_place(self, dtype: torch.dtype) -> bool:
        return False

    def keeps_exponentials(self, problem: Problem) -> bool:
        return False

    def stats(self, problem: Problem, logits: Tensor, chunk: slice, keep_exponentials: bool = False) -> Tensor:
        assert not keep_exponentials
        num_tokens, vocab_local = logits.shape
        num_stats, num_latents, _ = problem.stats_shape
        stats = logits.new_empty((num_stats, num_latents, num_tokens), dtype=problem.stats_dtype)
        if logits.numel() == 0:
            return stats_without_vocabulary(stats)
        blocks = stats_blocks(num_latents)
        kernels.token_stats[num_tokens, triton.cdiv(num_latents, blocks["LATENTS"])](
            logits,
            problem.bias,
            problem.shard.locate(problem.targets[chunk]),
            problem.segments.segment_ids[chunk],
            problem.segments.pair_of_segment,
            stats,
            num_tokens,
            vocab_local,
            num_latents,
            _num_pairs(problem.bias),
            logits.stride(0),
            *_softcap_and_rate(problem.shard),
            ENTROPY=problem.with_entropy,
            CAPPED=problem.shard.softcap is not None,
            DTYPE=_TRITON_TYPES[stats.dtype],
            **blocks,
        )
        return stats

    def logits_gradient_(self, problem: Problem, logits: Tensor, chunk: slice, gradient: LogpsGradient) -> None:
        if logits.numel() == 0:
            return
        num_tokens, vocab_local = logits.shape
        num_latents = gradient.scale.size(0)
        segments = problem.segments
        num_segments = segments.pair_of_segment.numel()
        bias = gradient.bias(problem)
        num_pairs = num_segments if bias is None else bias.size(1)
        blocks = gradient_blocks(num_latents)
        many = num_latents > LATENTS_AT_A_TIME
        kernel = kernels.many_latents_gradient if many else kernels.logits_gradient
        kernel[triton.cdiv(vocab_local, blocks["BLOCK_V"]), num_pairs](
            logits,
            bias,
            problem.shard.locate(problem.targets[chunk]),
            segments.cu_seqlens,
            segments.pair_of_segment,
            gradient.stats[0].contiguous(),
            gradient.stats[1].contiguous(),
            gradient.scale.contiguous(),
            gradient.d_bias,
            num_tokens,
            vocab_local,
            num_latents,
            num_pairs,
            num_segments,
            logits.stride(0),
            chunk.start,
            *_softcap_and_rate(problem.shard),
            CAPPED=problem.shard.softcap is not None,
            STORE=not gradient.only_bias,
            DTYPE=_TRITON_TYPES[gradient.scale.dtype],
            **blocks,
        )

    def scoring_stats(self, problem: Problem, chunks: list[slice]) -> Callable[[slice], Tensor]:
        """Without logits in memory, except in fp64, which `fused_stats` does not support."""
        if problem.hidden.dtype == torch.float64 or problem.shard.vocab_local == 0:
            return stats_of_logits(self, problem, chunks)
        size = max(fused_blocks(problem.hidden.dtype)["BLOCK_C"], _FUSED_TOKENS // problem.num_latents)
        return lambda chunk: torch.cat([fused_stats(problem, part) for part in _parts(chunk, size)], dim=-1)


def _parts(chunk: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, chunk.stop)) for start in range(chunk.start, chunk.stop, size)]


def fused_stats(problem: Problem, chunk: slice) -> Tensor:
    """`Backend.stats` of a chunk with C > 0 tokens, without logits in memory: hidden in fp32, bf16 or fp16, V > 0."""
    hidden = _with_unit_stride(problem.hidden[chunk])
    weight = _with_unit_stride(problem.vocab_weight)
    (num_tokens, hidden_size), vocab_local = hidden.shape, weight.size(0)
    blocks = fused_blocks(hidden.dtype)
    tiles = triton.cdiv(vocab_local, blocks["BLOCK_V"])
    num_stats, num_latents, _ = problem.stats_shape
    stats_of_tiles = hidden.new_empty((tiles, num_stats, num_latents, num_tokens), dtype=torch.float32)
    kernels.fused_stats[triton.cdiv(num_tokens, blocks["BLOCK_C"]), tiles](
        hidden,
        weight,
        problem.bias,
        problem.shard.locate(problem.targets[chunk]),
        problem.segments.segment_ids[chunk],
        problem.segments.cu_seqlens,
        problem.segments.pair_of_segment,
        stats_of_tiles,
        num_tokens,
        vocab_local,
        hidden_size,
        num_latents,
        _num_pairs(problem.bias),
        hidden.stride(0),
        weight.stride(0),
        chunk.start,
        *_softcap_and_rate(problem.shard),
        ENTROPY=problem.with_entropy,
        CAPPED=problem.shard.softcap is not None,
        EVEN_H=hidden_size % blocks["BLOCK_H"] == 0,
        **blocks,
    )
    return merge_stats(stats_of_tiles)


def _with_unit_stride(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _num_pairs(bias: Tensor | None) -> int:
    return 1 if bias is None else bias.size(1)


def _softcap_and_rate(shard: VocabShard) -> tuple[float, float]:
    """As the kernels take them; the soft cap is not read where there is none."""
    return shard.softcap or 1.0, 1 / shard.temperature
