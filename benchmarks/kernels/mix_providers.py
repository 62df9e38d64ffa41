"""`gumbel_mix`, forward and backward, and the chain of PyTorch operations that it replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lpc_kernels import GumbelMix, gumbel_mix
from lpc_kernels.gumbel_mix.pytorch_backend import gumbel_mix_pytorch
from lpc_kernels.gumbel_mix.result import MixOptions
from torch import Tensor

from benchmarks.kernels.mix_case import MixCase
from benchmarks.kernels.step import Step, Unavailable


def _pytorch(logits_q: Tensor, logits_p: Tensor, codebook: Tensor, sample_ids: Tensor, **options: Any) -> GumbelMix:
    return gumbel_mix_pytorch(logits_q, logits_p, codebook, sample_ids, MixOptions(**options))


def _provider(mix: Callable[..., GumbelMix]) -> Callable[[MixCase], Step]:
    """A provider that runs a function with the arguments of `gumbel_mix`."""

    def provider(case: MixCase) -> Step:
        generator = torch.Generator(case.device).manual_seed(0)

        def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device=case.device, dtype=dtype).requires_grad_()

        posterior_logits = normal(case.pairs, case.codes)
        prior_logits = normal(case.pairs, case.codes)
        codebook = normal(case.codes, case.hidden_size, dtype=case.dtype)
        inputs = (posterior_logits, prior_logits, codebook)
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
    return _provider(torch.compile(_pytorch, dynamic=False))(case)


PROVIDERS: dict[str, Callable[[MixCase], Step]] = {
    "pytorch": _provider(_pytorch),
    "ours": _ours,
    "compile": _compile,
}
