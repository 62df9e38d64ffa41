"""Ways to a preference loss: `pair_logps` by algorithm, PyTorch's, and those of other libraries.

A provider takes a case and returns a step. Providers of `OTHER_LOSSES` need not return the same loss: cross entropies
are means over tokens, and Liger's DPO averages over responses in some versions. Their matrix products are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from lpc_kernels import Algorithm, pair_logps
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels import library_providers
from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.pair_inputs import BETA, PairInputs, draw
from benchmarks.kernels.pair_step import pair_step
from benchmarks.kernels.step import Step, Unavailable


def _ours(algorithm: Algorithm) -> Callable[[PairCase], Step]:
    """`pair_logps` with an algorithm, on the loss tokens only."""

    def pair_loss(logps: Tensor, pairs: Tensor) -> Tensor:
        return -functional.logsigmoid(BETA * (logps[:, 0] - logps[:, 1])).sum(0)

    def provider(case: PairCase) -> Step:
        def loss(x: PairInputs) -> Tensor:
            loss_index = x.real.nonzero()[:, 0]
            result = pair_logps(
                x.hidden.index_select(0, loss_index),
                x.lm_head_weight,
                x.targets[loss_index],
                x.segment_ids[loss_index],
                2 * case.pairs,
                z=x.z,
                pair_loss=pair_loss,
                algorithm=algorithm,
                chunk_size=case.chunk_size,
            ).loss
            assert result is not None
            return result / case.pairs

        return pair_step(case, draw(case, train_head=algorithm != "frozen"), loss)

    return provider


def _plain_loss(x: PairInputs) -> Tensor:
    logps = [_plain_logps(hidden, x.lm_head_weight, x.targets) for hidden in x.each_shifted()]
    return x.loss(torch.stack(logps))


def _plain_logps(hidden: Tensor, lm_head_weight: Tensor, targets: Tensor) -> Tensor:
    """[N] log-probs of the targets, by way of all logits."""
    logits = hidden @ lm_head_weight.t()
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _pytorch(case: PairCase) -> Step:
    return pair_step(case, draw(case), _plain_loss)


def _compile(case: PairCase) -> Step:
    if case.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise Unavailable("torch.compile needs a C++ compiler on CPU")
    # It has compiled for other sizes before, and would give up after a few more.
    torch.compiler.reset()
    return pair_step(case, draw(case), torch.compile(_plain_loss, dynamic=False))


def _linear_cross_entropy(case: PairCase) -> Step:
    if not hasattr(functional, "linear_cross_entropy"):
        raise Unavailable(f"PyTorch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()

    def loss(x: PairInputs) -> Tensor:
        cross_entropies = [
            functional.linear_cross_entropy(hidden, x.lm_head_weight, x.labels, reduction="none", options=options)
            for hidden in x.each_shifted()
        ]
        return x.loss(-torch.stack(cross_entropies).float())

    return pair_step(case, draw(case), loss)


PROVIDERS: dict[str, Callable[[PairCase], Step]] = {
    "pytorch": _pytorch,
    "recompute": _ours("recompute"),
    "pairwise": _ours("pairwise"),
    "frozen": _ours("frozen"),
    "compile": _compile,
    "linear_cross_entropy": _linear_cross_entropy,
    "megatron": library_providers.megatron,
    "liger_tp": library_providers.liger_tp,
    "trl": library_providers.trl,
    "liger_dpo": library_providers.liger_dpo,
    "liger_ce": library_providers.liger_ce,
    "quack": library_providers.quack,
}
OTHER_LOSSES = ("liger_dpo", "liger_ce", "quack")
"""Providers whose loss is another one."""
