"""How a call is computed: the algorithms in one table, and the choice among them.

| algorithm | large products, in N V H multiplications and additions | needs |
|---|---|---|
| `recompute` | 8 | |
| `pairwise` | 6 (4 without the LM head's gradient) | the pair loss |
| `frozen` | 2 + 2 L | an LM head without gradient |
| `scoring` | 2 | no gradient asked for |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lpc_kernels.pair_logps.ops import flat_index, flat_scaling, flat_sizes, frozen_op, recompute_op, score_op
from lpc_kernels.pair_logps.pairwise import pairwise
from lpc_kernels.pair_logps.problem import Problem, Scores

Algorithm = Literal["auto", "recompute", "pairwise", "frozen"]
"""What a caller may ask for."""
Chosen = Literal["recompute", "pairwise", "frozen", "scoring"]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the choice depends on."""

    wants_gradient: bool
    lm_head_trained: bool
    """Whether the LM head requires a gradient."""
    num_latents: int
    pairs_fit: bool
    """Whether there is a pair loss, and every pair has at most `chunk_size` loss tokens. Read for `auto` only."""


def choose_algorithm(requested: Algorithm, circumstances: Circumstances) -> Chosen:
    """The algorithm of a call: the cheapest that is possible, for `auto`."""
    if not circumstances.wants_gradient:
        return "scoring"
    if requested != "auto":
        return requested
    if circumstances.pairs_fit:
        return "pairwise"
    if circumstances.lm_head_trained or circumstances.num_latents > 1:
        return "recompute"
    return "frozen"


def recompute(problem: Problem) -> Scores:
    """Log-probs for any loss; the backward pass makes the logits again."""
    flat = (flat_sizes(problem), flat_scaling(problem), problem.shard.group_name)
    tensors = (problem.hidden, problem.lm_head_weight, problem.z, flat_index(problem))
    token_logps, stats = recompute_op(*tensors, problem.main_grad, *flat)
    return Scores(token_logps, stats)


def frozen(problem: Problem) -> Scores:
    """Log-probs for any loss, of an LM head without gradient."""
    flat = (flat_sizes(problem), flat_scaling(problem), problem.shard.group_name)
    tensors = (problem.hidden, problem.lm_head_weight, problem.z, flat_index(problem))
    token_logps, stats, _ = frozen_op(*tensors, *flat)
    return Scores(token_logps, stats)


def scoring(problem: Problem) -> Scores:
    """Log-probs without gradient."""
    flat = (flat_sizes(problem), flat_scaling(problem), problem.shard.group_name)
    tensors = (problem.hidden, problem.lm_head_weight, problem.z, flat_index(problem))
    token_logps, stats = score_op(*tensors, *flat)
    return Scores(token_logps, stats)


ALGORITHMS: dict[Chosen, Callable[[Problem], Scores]] = {
    "recompute": recompute,
    "pairwise": pairwise,
    "frozen": frozen,
    "scoring": scoring,
}
