"""Sizes of `gumbel_mix`, and the bytes that it has to move."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_lpc.command_line import UserError


@dataclass(frozen=True, kw_only=True)
class MixCase:
    """fp32 logits of `pairs` pairs over `codes` codes, and a codebook [codes, hidden_size] in `dtype`."""

    device: str
    dtype: torch.dtype
    pairs: int
    codes: int
    hidden_size: int

    @property
    def flops(self) -> float | None:
        """None: the rate of this kernel is counted in bytes."""
        return None

    @property
    def bytes(self) -> float:
        """What has to be read and written once, at least: forward, then backward of z and the divergence."""
        size = self.dtype.itemsize
        codebook = self.codes * self.hidden_size * size
        z = self.pairs * self.hidden_size * size
        logits = self.pairs * self.codes * 4
        forward = codebook + z + 6 * logits
        backward = 2 * codebook + z + 6 * logits
        return forward + backward

    def labels(self) -> dict[str, object]:
        """Columns of a report that tell cases apart."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "B": self.pairs, "K": self.codes, "H": self.hidden_size}

    def check(self) -> None:
        """Raises UserError for sizes below 1."""
        if min(self.pairs, self.codes, self.hidden_size) < 1:
            raise UserError(
                "--pairs, --codes and --hidden-size must be at least 1, "
                f"got {self.pairs}, {self.codes} and {self.hidden_size}"
            )
