"""How a call is computed: the algorithms in one table, and the choice among them.

An algorithm is an `AlgorithmFunction` in a file with its name: it takes the validated inputs of a call and returns the
log-probs of the loss tokens, and, if it evaluates the pair loss itself, the losses. `api.py` does the rest.

| algorithm | large products, in N V H multiplications and additions | needs |
|---|---|---|
| `recompute` | 8 (4 for the gradient of z alone) | |
| `pairwise` | 6 (4 without the LM head's gradient, 2 for the gradient of z alone) | the pair loss |
| `frozen` | 2 + 2 L | an LM head without gradient |
| `scoring` | 2 | no gradient asked for |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lpc_kernels.pair_logps.frozen import frozen
from lpc_kernels.pair_logps.pairwise import pairwise
from lpc_kernels.pair_logps.problem import Problem, Scores
from lpc_kernels.pair_logps.recompute import recompute
from lpc_kernels.pair_logps.scoring import scoring

Algorithm = Literal["auto", "recompute", "pairwise", "frozen"]
"""What a caller may ask for."""
Chosen = Literal["recompute", "pairwise", "frozen", "scoring"]
"""What a call is computed by."""
AlgorithmFunction = Callable[[Problem], Scores]
"""The signature of an algorithm. Its `Scores` are shaped as `problem.py` says, on every rank the same."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the choice depends on."""

    wants_gradient: bool
    lm_head_trained: bool
    """Whether the LM head requires a gradient."""
    hidden_trained: bool = True
    """Whether the hidden states require a gradient."""
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
    if circumstances.lm_head_trained or circumstances.num_latents > 1 or not circumstances.hidden_trained:
        # For the gradient of z alone it takes 4 N V H as `frozen` does, and keeps no [N, H].
        return "recompute"
    return "frozen"


ALGORITHMS: dict[Chosen, AlgorithmFunction] = {
    "recompute": recompute,
    "pairwise": pairwise,
    "frozen": frozen,
    "scoring": scoring,
}
