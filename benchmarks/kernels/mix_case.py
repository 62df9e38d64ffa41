"""`gumbel_mix`, forward and backward, against the chain of PyTorch operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lpc_kernels import GumbelMix, gumbel_mix
from lpc_kernels.gumbel_mix import gumbel_mix_reference
from torch import Tensor

from benchmarks.kernels.pair_providers import Step, Unavailable


@dataclass(frozen=True, kw_only=True)
class MixCase:
    """fp32 logits of `pairs` pairs over `codes` codes, and a codebook of width `width` in `dtype`."""

    device: str
    dtype: torch.dtype
    pairs: int
    codes: int
    width: int

    @property
    def flops(self) -> float | None:
        return None

    @property
    def bytes(self) -> float:
        """What has to be read and written once, at least: forward, then backward of z and the divergence."""
        size = self.dtype.itemsize
        codebook, z, table = self.codes * self.width * size, self.pairs * self.width * size, self.pairs * self.codes * 4
        return (codebook + z + 6 * table) + (2 * codebook + z + 6 * table)

    def labels(self) -> dict[str, object]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "B": self.pairs, "K": self.codes, "H": self.width}

    def check(self) -> None:
        """Raises ValueError for sizes below 1."""
        if min(self.pairs, self.codes, self.width) < 1:
            raise ValueError(
                f"--pairs, --codes and --width must be at least 1, got {self.pairs}, {self.codes} and {self.width}"
            )


def _provider(mix: Callable[..., GumbelMix]) -> Callable[[MixCase], Step]:
    def provider(case: MixCase) -> Step:
        generator = torch.Generator(case.device).manual_seed(0)

        def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device=case.device, dtype=dtype).requires_grad_()

        inputs = (
            normal(case.pairs, case.codes),
            normal(case.pairs, case.codes),
            normal(case.codes, case.width, dtype=case.dtype),
        )
        ids = torch.arange(case.pairs, device=case.device)

        def step() -> Tensor:
            result = mix(*inputs, ids, seed=1, tau=0.7, prior_mix=0.5, straight_through=False)
            loss = result.z.float().square().mean() + result.kl.mean()
            torch.autograd.grad(loss, inputs)
            return loss.detach()

        return step

    return provider


def _ours(case: MixCase) -> Step:
    if case.device == "cpu":
        raise Unavailable("gumbel_mix on CPU is the chain of PyTorch operations")
    return _provider(gumbel_mix)(case)


def _compile(case: MixCase) -> Step:
    torch.compiler.reset()
    return _provider(torch.compile(gumbel_mix_reference, dynamic=False))(case)


PROVIDERS: dict[str, Callable[[MixCase], Step]] = {
    "pytorch": _provider(gumbel_mix_reference),
    "ours": _ours,
    "compile": _compile,
}
