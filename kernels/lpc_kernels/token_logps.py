"""Log-probabilities of target words under a (vocabulary-parallel) LM head, for several latents at once.

Built on logits(h + z) = h W^T + (z W^T)[pair of the row]: every latent of the same rows shares the one large product, and z = 0 gives
the same bits as no z at all. The schedule is `recompute`: the forward pass keeps a maximum and a sum of exponentials per row, the
backward pass makes the logits again. Both go through the rows in chunks, so that no [N, V] tensor exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Head:
    """This rank's part of the LM head: from which word on, how many real words, and what becomes of their logits."""

    vocab_start: int
    columns: int
    group: dist.ProcessGroup | None
    chunk_size: int
    softcap: float | None
    temperature: float

    def logits(self, base: Tensor, bias: Tensor | None, pair: Tensor, dtype: torch.dtype) -> Tensor:
        """[C, V] in `dtype`: base [C, V] plus, for each row, the row of bias [P, V] that belongs to its pair [C].

        Without bias there is one latent only, and base is consumed.
        """
        logits = base.to(dtype) if bias is None else bias.index_select(0, pair).add_(base)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Derivative of those logits by base; None where it is 1."""
        if self.softcap is None:
            return None if self.temperature == 1.0 else logits.new_tensor(1 / self.temperature)
        return logits.mul(self.temperature / self.softcap).square_().neg_().add_(1.0).div_(self.temperature)

    def locate(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[C, 1] column of each target here, and [C, 1] whether it is here at all (the column is then 0)."""
        column = (targets - self.vocab_start)[:, None]
        mine = (column >= 0) & (column < self.columns)
        return column.where(mine, 0), mine


class TokenLogps(torch.autograd.Function):
    """[L, N] log-probs of the targets; L = 1 without latents."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, z: Tensor | None, targets: Tensor, segments: Tensor, head: Head) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        words = weight[: head.columns]
        biases, pair = _biases(z, words, segments, dtype)
        latents, rows = len(biases), hidden.size(0)
        # An empty shard must lose every comparison, and a target that no rank holds has probability 0: both are -inf.
        peak = hidden.new_full((2, latents, rows), -torch.inf, dtype=dtype)
        total = hidden.new_zeros((latents, rows), dtype=dtype)
        for chunk in _chunks(rows if head.columns else 0, head.chunk_size):
            base = hidden[chunk] @ words.t()
            column, mine = head.locate(targets[chunk])
            for n, bias in enumerate(biases):
                logits = head.logits(base, bias, pair[chunk], dtype)
                peak[0, n, chunk] = logits.amax(-1)
                peak[1, n, chunk] = logits.gather(1, column).where(mine, -torch.inf)[:, 0]
                total[n, chunk] = logits.sub_(peak[0, n, chunk, None]).exp_().sum(-1)
        if head.group is not None and rows:
            local = peak[0].clone()
            dist.all_reduce(peak, dist.ReduceOp.MAX, group=head.group)
            total.mul_((local - peak[0]).exp_())
            dist.all_reduce(total, dist.ReduceOp.SUM, group=head.group)
        ctx.head = head
        ctx.save_for_backward(hidden, weight, z, targets, segments, peak[0], total)
        # The maximum leaves before the logarithm comes: logits with a large common offset lose nothing.
        return (peak[1] - peak[0]) - total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, z, targets, segments, peak, total = ctx.saved_tensors
        head: Head = ctx.head
        need_hidden, need_weight, need_z = ctx.needs_input_grad[:3]
        dtype = peak.dtype
        words = weight[: head.columns]
        biases, pair = _biases(z, words, segments, dtype)
        d_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if need_hidden else None
        d_weight = weight.new_zeros(weight.shape, dtype=dtype) if need_weight else None
        d_words = None if d_weight is None else d_weight[: head.columns]
        d_bias = None if z is None else torch.zeros((*z.shape[:2], head.columns), dtype=dtype, device=z.device)
        for chunk in _chunks(hidden.size(0) if head.columns else 0, head.chunk_size):
            rows = hidden[chunk]
            base = rows @ words.t()
            column, mine = head.locate(targets[chunk])
            summed: Tensor | None = None
            for n, bias in enumerate(biases):
                logits = head.logits(base, bias, pair[chunk], dtype)
                slope = head.slope(logits)
                scale = grad[n, chunk, None]
                # d log p[target] = onehot - p, times the coefficient, while still in fp32: bf16 would lose a small 1 - p.
                d_logits = logits.sub_(peak[n, chunk, None]).exp_().mul_(-scale / total[n, chunk, None])
                d_logits.scatter_(1, column, d_logits.gather(1, column) + scale * mine)
                if slope is not None:
                    d_logits.mul_(slope)
                if d_bias is not None and (need_z or need_weight):
                    # A product with the one-hot pairs adds up rows in a fixed order on every device; index_add_ does not.
                    d_bias[n].addmm_(_one_hot(pair[chunk], d_bias.size(1), dtype).t(), d_logits)
                summed = d_logits if summed is None else summed.add_(d_logits)
            assert summed is not None
            rounded = summed.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[chunk] = rounded @ words
            if d_words is not None:
                d_words.addmm_(rounded.t(), rows) if rows.dtype == dtype else d_words.add_(rounded.t() @ rows)
        d_z = None
        if z is not None and d_bias is not None:
            flat = d_bias.flatten(0, 1)
            if d_words is not None:
                d_words.addmm_(flat.t(), z.flatten(0, 1).to(dtype))
            d_z = (flat.to(weight.dtype) @ words).to(dtype).view(z.shape) if need_z else None
        if head.group is not None:
            for partial in (d_hidden, d_z):
                if partial is not None and partial.numel():
                    dist.all_reduce(partial, group=head.group)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_z is None or z is None else d_z.to(z.dtype),
            None,
            None,
            None,
        )


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]


def _biases(z: Tensor | None, words: Tensor, segments: Tensor, dtype: torch.dtype) -> tuple[list[Tensor] | list[None], Tensor]:
    """For each latent z W^T, [P, V], and the pair of each row, [N]. Without latents one that adds nothing."""
    if z is None:
        return [None], segments
    # One product a latent, for a latent to get the same bits alone as beside others.
    return [(latent @ words.t()).to(dtype) for latent in z.to(words.dtype)], segments % z.size(1)


def _one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return (index[:, None] == torch.arange(size, device=index.device)).to(dtype)
