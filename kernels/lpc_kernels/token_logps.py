"""Log-probs of the rows for a loss that is known only afterwards: the schedules `recompute` and `frozen`, and work without gradient.

All go through the rows in chunks, so that no [N, V] tensor exists, and share the one large product h W^T among all latents:
logits(h + z) = h W^T + (z W^T)[pair of the row].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from lpc_kernels.chunk_logits import ChunkLogits, overlapped
from lpc_kernels.gradients import Gradients, Wanted
from lpc_kernels.head import Head, latent_biases
from lpc_kernels.row_work import fused_stats, fuses, logits_gradient_, row_stats
from lpc_kernels.runs import Runs, row_chunks
from lpc_kernels.vocab_parallel import gather_stats


def score(
    hidden: Tensor,
    weight: Tensor,
    z: Tensor | None,
    targets: Tensor,
    runs: Runs,
    head: Head,
    chunk_size: int,
    entropy: bool,
    fused: bool,
) -> Tensor:
    """[S, L, N] statistics of `row_stats` over all ranks' words. Collective: an all-gather a chunk, beneath the next chunk's product.

    fused: without logits in memory, where Triton runs; else by the product that backward makes again, to the bit.
    """
    words = weight[: head.columns]
    bias = latent_biases(z, words)
    chunks = row_chunks(hidden.size(0), chunk_size)
    in_memory = None if fused and fuses(hidden, head) else ChunkLogits(hidden, words, chunks)
    parts = []
    for chunk in chunks:
        rest = (bias, targets[chunk], runs, chunk, head, entropy)
        own = row_stats(in_memory(chunk), *rest) if in_memory else fused_stats(hidden[chunk], words, *rest)
        parts.append(gather_stats(own, head.group))
    if not parts:
        return hidden.new_zeros(
            (3 + entropy, 1 if z is None else z.size(0), 0), dtype=torch.promote_types(hidden.dtype, torch.float32)
        )
    return torch.cat([part() for part in parts], dim=-1)


def gradients_again(
    hidden: Tensor,
    weight: Tensor,
    z: Tensor | None,
    targets: Tensor,
    runs: Runs,
    head: Head,
    chunk_size: int,
    stats: Tensor,
    grad: Tensor,
    wanted: Wanted,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and z, each if wanted, from those of the log-probs, [L, N]; makes the logits again.

    Collectives: as `Gradients`.
    """
    words = weight[: head.columns]
    bias = latent_biases(z, words)
    gradients = Gradients(hidden, weight, z, head, wanted)
    chunks = row_chunks(hidden.size(0), chunk_size)
    logits = ChunkLogits(hidden, words, chunks)
    for chunk in chunks:
        base = logits(chunk)
        logits_gradient_(
            base, bias, targets[chunk], stats[:2, :, chunk], grad[:, chunk], runs, chunk, head, gradients.bias
        )
        gradients.add(chunk, base)
    return gradients.finish()


def score_with_jacobian(
    hidden: Tensor,
    weight: Tensor,
    z: Tensor | None,
    targets: Tensor,
    runs: Runs,
    head: Head,
    chunk_size: int,
    entropy: bool,
) -> tuple[Tensor, Tensor]:
    """`score`, and [L, N, H] d log-prob / d hidden of each row, for a head that has no gradient.

    Costs (2 + 2 L) N V H instead of 6 N V H, and L N H numbers. Collectives: those of `score`; an all-reduce of the Jacobian, in chunks.
    """
    words = weight[: head.columns]
    bias = latent_biases(z, words)
    latents, rows = 1 if z is None else z.size(0), hidden.size(0)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    jacobian = hidden.new_zeros((latents, rows, hidden.size(1)))
    stats = hidden.new_empty((3 + entropy, latents, rows), dtype=dtype)
    reductions: list[dist.Work] = []

    def finish(chunk: slice, base: Tensor, arriving: Callable[[], Tensor]) -> None:
        merged = stats[..., chunk] = arriving()
        one = merged.new_ones((1, base.size(0)))
        for n in range(latents):
            logits = base if n == latents - 1 else base.clone()
            own_bias = None if bias is None else bias[n : n + 1]
            logits_gradient_(logits, own_bias, targets[chunk], merged[:2, n : n + 1], one, runs, chunk, head, None)
            part = jacobian[n, chunk]
            if head.columns:
                torch.mm(logits, words, out=part)
            if head.group is not None:
                reductions.append(dist.all_reduce(part, group=head.group, async_op=True))

    chunks, alive = row_chunks(rows, chunk_size), 1 if head.group is None else 2
    product = ChunkLogits(hidden, words, chunks, alive)

    def start(chunk: slice) -> tuple[slice, Tensor, Callable[[], Tensor]]:
        base = product(chunk)
        return chunk, base, gather_stats(row_stats(base, bias, targets[chunk], runs, chunk, head, entropy), head.group)

    for started in overlapped(chunks, start, alive):
        finish(*started)
    for reduction in reductions:
        reduction.wait()
    return stats, jacobian


def gradients_of_latents(scaled: Tensor, runs: Runs, pairs: int) -> Tensor:
    """[L, P, H] sums over the rows of each of P pairs. scaled: [L, N, H] gradients of h + z."""
    pair = runs.pairs.repeat_interleave(runs.edges.diff(), output_size=scaled.size(1))
    # A product with the one-hot pairs adds up rows in a fixed order on every device; index_add_ does not.
    one_hot = (torch.arange(pairs, device=pair.device)[:, None] == pair).to(scaled.dtype)
    return one_hot @ scaled


def as_gradient(value: Tensor | None, gradient: Tensor | None, added_to: Tensor | None = None) -> Tensor | None:
    """What autograd gets for an input: its gradient in its dtype, or, where that was added to a buffer, zeros that take no memory."""
    if value is None or gradient is None:
        return None
    return gradient.to(value.dtype) if added_to is None else value.new_zeros(()).expand_as(value)
