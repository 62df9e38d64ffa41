"""The schedule `pairwise`: the preference loss is known beforehand, so the logits of whole pairs go straight on to the gradients.

A chunk holds both responses of some pairs. Once its log-probs are known, so are the loss and its derivative by each of them; the logits,
which are still there, become their own gradient in place and are multiplied at once: 6 N V H instead of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpc_kernels.chunk_logits import ChunkLogits, overlapped
from lpc_kernels.gradients import Gradients, Wanted
from lpc_kernels.head import Head, latent_biases
from lpc_kernels.row_work import keeps_exponentials, logits_gradient_, row_stats
from lpc_kernels.runs import Runs, by_pair, pair_chunks
from lpc_kernels.token_logps import as_gradient
from lpc_kernels.vocab_parallel import gather_stats, log_prob

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""From [L, 2, C] summed log-probs of C pairs, chosen before rejected, and the [C] int64 numbers of the pairs, to their [C] losses."""


class _Chunk(NamedTuple):
    rows: slice
    pairs: slice
    logits: Tensor
    stats: Callable[[], Tensor]
    own_peak: Tensor | None


class Pairwise(torch.autograd.Function):
    """The loss summed over all pairs, and without gradient: [L, N] log-probs of the targets and the statistics they come from."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        z: Tensor | None,
        targets: Tensor,
        runs: Runs,
        head: Head,
        chunk_size: int,
        entropy: bool,
        weight_grad: Tensor | None,
        pair_loss: PairLoss,
    ) -> tuple[Tensor, Tensor, Tensor]:
        words = weight[: head.columns]
        bias = latent_biases(z, words)
        paired, order = by_pair(runs)
        rows, targets = hidden[order], targets[order]
        for_hidden, for_weight, for_z = ctx.needs_input_grad[:3]
        gradients = Gradients(rows, weight, z, head, Wanted(for_hidden, for_weight, for_z, weight_grad))
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        stats = hidden.new_empty((3 + entropy, 1 if z is None else z.size(0), rows.size(0)), dtype=dtype)
        total = hidden.new_zeros((), dtype=dtype)

        def finish(chunk: _Chunk) -> Tensor:
            merged = stats[..., chunk.rows] = chunk.stats()
            loss, scale = _judge(log_prob(merged), _within(paired, chunk), chunk.pairs, pair_loss)
            logits_gradient_(
                chunk.logits,
                bias,
                targets[chunk.rows],
                merged,
                scale,
                paired,
                chunk.rows,
                head,
                gradients.bias,
                chunk.own_peak,
            )
            gradients.add(chunk.rows, chunk.logits)
            return loss

        # Other ranks' statistics arrive beneath the next chunk's product, at the price of a second chunk.
        chunks, alive = pair_chunks(paired, chunk_size), 1 if head.group is None else 2
        product = ChunkLogits(rows, words, [place for place, _ in chunks], alive)

        def start(chunk: tuple[slice, slice]) -> _Chunk:
            place, pairs = chunk
            logits = product(place)
            keep = keeps_exponentials(logits, stats.size(1), head, entropy)
            own = row_stats(logits, bias, targets[place], paired, place, head, entropy, keep)
            return _Chunk(place, pairs, logits, gather_stats(own, head.group), own[0] if keep else None)

        for chunk in overlapped(chunks, start, alive):
            total += finish(chunk)
        d_hidden, d_weight, d_z = gradients.finish()
        if d_hidden is not None:
            d_hidden = rows.index_copy_(0, order, d_hidden)  # rows have served
        back = torch.empty_like(stats).index_copy_(-1, order, stats)
        logps = log_prob(back)
        ctx.gradients, ctx.added = (d_hidden, d_weight, d_z), weight_grad is not None
        ctx.save_for_backward(weight, z)
        ctx.mark_non_differentiable(logps, back)
        return total, logps, back

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        weight, z = ctx.saved_tensors
        if ctx.gradients is None:
            raise RuntimeError(
                "pair_logps: the gradients of algorithm pairwise were made in the forward pass and are gone after one backward"
            )
        d_hidden, d_weight, d_z = ctx.gradients
        ctx.gradients = None
        if ctx.added and d_weight is not None:
            # What has been added to a buffer that others add to cannot be scaled any more; only not to be finite can be passed on.
            torch._assert_async(
                (grad == 1) | ~grad.isfinite(),
                "pair_logps: with algorithm pairwise and main_grad the loss must enter the final loss with factor 1",
            )
            d_weight[:1] += grad - 1
        elif d_weight is not None:
            d_weight.mul_(grad)
        return (
            None if d_hidden is None else d_hidden.mul_(grad.to(d_hidden.dtype)),
            as_gradient(weight, d_weight, d_weight if ctx.added else None),
            as_gradient(z, None if d_z is None else d_z.mul_(grad)),
            *[None] * 7,
        )


def _within(paired: Runs, chunk: _Chunk) -> Runs:
    """The runs of a chunk, its first row being row 0."""
    start, stop = 2 * chunk.pairs.start, 2 * chunk.pairs.stop
    return Runs(
        paired.edges[start : stop + 1] - chunk.rows.start, paired.pairs[start:stop], chunk.rows.stop - chunk.rows.start
    )


def _judge(token_logps: Tensor, runs: Runs, pairs: slice, pair_loss: PairLoss) -> tuple[Tensor, Tensor]:
    """The summed loss of the pairs of a chunk, and its derivative by each of the [L, C] token log-probs."""
    with torch.enable_grad():
        logps = runs.sums(token_logps).unflatten(1, (-1, 2)).transpose(1, 2).detach().requires_grad_()
        loss = summed_loss(pair_loss, logps, torch.arange(pairs.start, pairs.stop, device=logps.device))
        (coefficient,) = torch.autograd.grad(loss, logps)
    by_run = coefficient.transpose(1, 2).flatten(1)
    return loss.detach(), by_run.repeat_interleave(runs.edges.diff(), dim=1, output_size=token_logps.size(1))


def summed_loss(pair_loss: PairLoss, logps: Tensor, pairs: Tensor) -> Tensor:
    """The losses of some pairs, added up. logps: [L, 2, C]. pairs: [C]. Raises ValueError unless there is one for each pair."""
    losses = pair_loss(logps, pairs)
    if losses.shape != pairs.shape:
        raise ValueError(
            f"pair_logps: pair_loss must give a loss for each of {pairs.numel()} pairs, got {list(losses.shape)}"
        )
    return losses.sum()
