"""The backward pass of the algorithm `recompute`: the logits are made again, for any loss of the log-probs.

8 N V H with the forward.
"""

from __future__ import annotations

from torch import Tensor

from lpc_kernels.pair_logps.backend import LogpsGradient, choose_backend
from lpc_kernels.pair_logps.chunk_logits import ChunkLogits
from lpc_kernels.pair_logps.gradients import Gradients, InputGradients, Wanted
from lpc_kernels.pair_logps.problem import Problem
from lpc_kernels.pair_logps.segments import token_chunks


def gradients_by_recompute(problem: Problem, stats: Tensor, d_logps: Tensor, wanted: Wanted) -> InputGradients:
    """From the statistics of the forward pass and the gradient of the log-probs, [L, N].

    Collectives: those of `Gradients`.
    """
    backend = choose_backend(problem)
    gradients = Gradients(problem, wanted)
    chunks = token_chunks(problem.num_tokens, problem.chunk_size)
    chunk_logits = ChunkLogits(problem, chunks)
    for chunk in chunks:
        logits = chunk_logits(chunk)
        gradient = LogpsGradient(
            scale=d_logps[:, chunk],
            stats=stats[:2, :, chunk],
            bias=problem.bias,
            d_bias=gradients.bias,
        )
        backend.logits_gradient_(problem, logits, chunk, gradient)
        gradients.add(chunk, logits)
    return gradients.finish()
