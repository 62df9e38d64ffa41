"""Softmax statistics of all loss tokens, in chunks: the algorithm without gradient, and the forward pass of
`recompute`. 2 N V H.

No [N, V] tensor exists, and all latents share the one large product h W^T: logits(h + z) = h W^T + (z W^T)[pair of the
token].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpc_kernels.pair_logps.backend import choose_backend, stats_of_logits
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import token_chunks
from lpc_kernels.pair_logps.softmax_stats import gather_stats


def stats_for_scores(problem: Problem) -> Tensor:
    """[S, L, N] statistics over the whole vocabulary; on Triton no logits reach memory. Collective: as `_gathered`."""
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    return _gathered(problem, chunks, choose_backend(problem).scoring_stats(problem, chunks))


def stats_for_recompute(problem: Problem) -> Tensor:
    """The same from the product that the backward pass makes again, to the bit. Collective: as `_gathered`."""
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    return _gathered(problem, chunks, stats_of_logits(choose_backend(problem), problem, chunks))


def _gathered(problem: Problem, chunks: list[slice], local_stats: Callable[[slice], Tensor]) -> Tensor:
    """Collective: one all-gather per chunk on the tensor parallel group, overlapped with the next chunk's product."""
    group = problem.shard.group
    arriving = [gather_stats(local_stats(chunk), group) for chunk in chunks]
    if not arriving:
        return problem.hidden.new_zeros(problem.stats_shape, dtype=problem.stats_dtype)
    return torch.cat([wait() for wait in arriving], dim=-1)
