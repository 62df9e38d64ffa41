"""This rank's shard of a (vocabulary-parallel) LM head, and how its logits are transformed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """Token ids `vocab_start` to `vocab_start + vocab_local` of the vocabulary, without padding.

    All fields are plain values, as an operator of PyTorch can take.
    """

    vocab_start: int
    vocab_local: int
    group_name: str | None
    """Group of the ranks that hold the other shards; None if there are none."""
    softcap: float | None
    temperature: float

    @property
    def group(self) -> dist.ProcessGroup | None:
        if self.group_name is None:
            return None
        return dist.distributed_c10d._resolve_process_group(self.group_name)  # type: ignore[arg-type]

    def locate(self, targets: Tensor) -> Tensor:
        """[C] index of each target in this shard, or -1 where another rank, or none, has it."""
        local = targets - self.vocab_start
        return local.where((local >= 0) & (local < self.vocab_local), -1)

    def cap_(self, logits: Tensor) -> Tensor:
        """cap(logits) / temperature, in place."""
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        return logits

    def slope(self, capped: Tensor) -> Tensor | None:
        """Derivative of what `cap_` returned by what it was given; None where it is 1."""
        if self.softcap is not None:
            tanh = capped.mul(self.temperature / self.softcap)
            return tanh.square_().neg_().add_(1.0).div_(self.temperature)
        if self.temperature != 1.0:
            return capped.new_tensor(1 / self.temperature)
        return None


def latent_biases(z: Tensor | None, vocab_weight: Tensor) -> Tensor | None:
    """[L, P, V] z W^T in fp32 (fp64), what each latent adds to the logits of its pair; None without latents."""
    if z is None:
        return None
    dtype = torch.promote_types(vocab_weight.dtype, torch.float32)
    # One product per latent, so that a latent gets the same bits by itself as together with others.
    return torch.stack([(latent @ vocab_weight.t()).to(dtype) for latent in z.to(vocab_weight.dtype)])
