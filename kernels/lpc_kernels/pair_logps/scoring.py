"""The algorithm `scoring`: log-probs where no gradient is asked for, 2 N V H.

No [N, V] tensor exists, and all latents share the one large product h W^T: logits(h + z) = h W^T + (z W^T)[pair of the
token]. On Triton no logits reach memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpc_kernels.pair_logps.backend import fastest_backend
from lpc_kernels.pair_logps.operator_arguments import empty_outputs, flat, problem_of
from lpc_kernels.pair_logps.problem import Problem, Scores
from lpc_kernels.pair_logps.segments import token_chunks
from lpc_kernels.pair_logps.softmax_stats import gather_stats, log_prob


def scoring(problem: Problem) -> Scores:
    """Log-probs without gradient. Collective: an all-gather per chunk on the tensor parallel group."""
    token_logps, stats = scoring_op(*flat(problem))
    return Scores(token_logps, stats)


@torch.library.custom_op("lpc_kernels::scoring", mutates_args=())
def scoring_op(
    hidden: Tensor,
    lm_head_weight: Tensor,
    z: Tensor | None,
    index: list[Tensor],
    sizes: list[int],
    scaling: list[float],
    group_name: str | None,
) -> tuple[Tensor, Tensor]:
    """`scoring`. Collective: an all-gather per chunk."""
    stats = _stats(problem_of(hidden, lm_head_weight, z, index, sizes, scaling, group_name))
    return log_prob(stats), stats


@scoring_op.register_fake
def _(hidden, lm_head_weight, z, index, sizes, scaling, group_name):  # type: ignore[no-untyped-def]
    return empty_outputs(hidden, z, sizes)


def _stats(problem: Problem) -> Tensor:
    """[3 or 4, L, N] statistics over the whole vocabulary. Collective: as `gathered_stats`."""
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    return gathered_stats(problem, chunks, fastest_backend(problem).scoring_stats(problem, chunks))


def gathered_stats(problem: Problem, chunks: list[slice], local_stats: Callable[[slice], Tensor]) -> Tensor:
    """[3 or 4, L, N] statistics over the whole vocabulary, from a function that makes those of a chunk on this shard.

    Collective: one all-gather per chunk on the tensor parallel group, overlapped with the next chunk's product.
    """
    group = problem.shard.group
    arriving = [gather_stats(local_stats(chunk), group) for chunk in chunks]
    if not arriving:
        return problem.hidden.new_zeros(problem.stats_shape, dtype=problem.stats_dtype)
    return torch.cat([wait() for wait in arriving], dim=-1)
