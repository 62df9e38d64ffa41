"""This rank's part of a (vocabulary-parallel) LM head, and what becomes of the logits that it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Words `vocab_start` to `vocab_start + columns` of the vocabulary; padding is not counted. Plain values, as operators take."""

    vocab_start: int
    columns: int
    group_name: str | None
    """Of the ranks that hold the other words; None where there are none."""
    softcap: float | None
    temperature: float

    @property
    def group(self) -> dist.ProcessGroup | None:
        return None if self.group_name is None else dist.distributed_c10d._resolve_process_group(self.group_name)  # type: ignore[arg-type]

    def locate(self, targets: Tensor) -> Tensor:
        """[C] column of each target here, or -1 where another rank, or none, has it."""
        column = targets - self.vocab_start
        return column.where((column >= 0) & (column < self.columns), -1)

    def cap_(self, logits: Tensor) -> Tensor:
        """cap(logits) / temperature, in place."""
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def slope(self, capped: Tensor) -> Tensor | None:
        """Derivative of what `cap_` gave by what it got; None where it is 1."""
        if self.softcap is None:
            return None if self.temperature == 1.0 else capped.new_tensor(1 / self.temperature)
        return capped.mul(self.temperature / self.softcap).square_().neg_().add_(1.0).div_(self.temperature)


def latent_biases(z: Tensor | None, words: Tensor) -> Tensor | None:
    """z W^T, fp32 (fp64): [L, P, H] -> [L, P, V], what each latent adds to the logits of its pair; None without latents."""
    if z is None:
        return None
    dtype = torch.promote_types(words.dtype, torch.float32)
    # One product a latent, for a latent to get the same bits alone as beside others.
    return torch.stack([(latent @ words.t()).to(dtype) for latent in z.to(words.dtype)])
