"""Ways to a preference loss: ours by algorithm, PyTorch's, and those of other libraries, which are left out where they do not run.

A provider takes a case and returns a step without arguments, which returns the loss. Providers of `OTHER_JOBS` need not return the same
loss: cross entropies are means over rows, and Liger's DPO averages over responses in some versions. Their products are the same.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from lpc_kernels import Algorithm, pair_logps
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.pair_case import BETA, PairCase, PairInputs, draw

Step = Callable[[], Tensor]


class Unavailable(Exception):
    """Why a provider cannot run here."""


def _step(case: PairCase, inputs: PairInputs, loss: Callable[[PairInputs], Tensor]) -> Step:
    wanted = [x for x in (inputs.hidden, inputs.weight, inputs.z) if x.requires_grad]

    def step() -> Tensor:
        with torch.set_grad_enabled(case.direction == "training"):
            value = loss(inputs)
        if wanted:
            torch.autograd.grad(value, wanted)
        return value.detach()

    return step


def _ours(algorithm: Algorithm) -> Callable[[PairCase], Step]:
    def provider(case: PairCase) -> Step:
        def pair_loss(logps: Tensor, pairs: Tensor) -> Tensor:
            return -functional.logsigmoid(BETA * (logps[:, 0] - logps[:, 1])).sum(0)

        def loss(x: PairInputs) -> Tensor:
            rows = x.real.nonzero()[:, 0]
            result = pair_logps(
                x.hidden.index_select(0, rows),
                x.weight,
                x.targets[rows],
                x.segments[rows],
                2 * case.pairs,
                z=x.z,
                pair_loss=pair_loss,
                algorithm=algorithm,
                chunk_size=case.chunk_size,
            ).loss
            assert result is not None
            return result / case.pairs

        return _step(case, draw(case, train_head=algorithm != "frozen"), loss)

    return provider


def _plain(x: PairInputs) -> Tensor:
    return x.loss(torch.stack([_logps(x.shifted(latent), x.weight, x.targets) for latent in range(x.z.size(0))]))


def _logps(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (rows @ weight.t()).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _pytorch(case: PairCase) -> Step:
    return _step(case, draw(case), _plain)


def _compile(case: PairCase) -> Step:
    if case.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise Unavailable("torch.compile needs a C++ compiler on CPU")
    # Of other sizes it has compiled some, and would give up after a few more.
    torch.compiler.reset()
    return _step(case, draw(case), torch.compile(_plain, dynamic=False))


def _linear_cross_entropy(case: PairCase) -> Step:
    if not hasattr(functional, "linear_cross_entropy"):
        raise Unavailable(f"PyTorch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()

    def loss(x: PairInputs) -> Tensor:
        each = (x.shifted(latent) for latent in range(x.z.size(0)))
        cost = [
            functional.linear_cross_entropy(rows, x.weight, x.labels, reduction="none", options=options)
            for rows in each
        ]
        return x.loss(-torch.stack(cost).float())

    return _step(case, draw(case), loss)


def _megatron(case: PairCase) -> Step:
    try:
        with warnings.catch_warnings(action="ignore"):
            from megatron.core import parallel_state
            from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
    except ImportError as error:
        raise Unavailable(f"megatron-core: {error}") from error
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if case.device == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
        )
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()

    def loss(x: PairInputs) -> Tensor:
        each = (x.shifted(latent) for latent in range(x.z.size(0)))
        return x.loss(
            -torch.stack([vocab_parallel_cross_entropy((rows @ x.weight.t()).float(), x.targets) for rows in each])
        )

    return _step(case, draw(case), loss)


def _liger_dpo(case: PairCase) -> Step:
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
    except ImportError as error:
        raise Unavailable(f"Liger-Kernel: {error}") from error
    fused = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False)

    def loss(x: PairInputs) -> Tensor:
        labels = x.labels.view(2 * case.pairs, -1)
        each = (x.shifted(latent).view(*labels.shape, -1) for latent in range(x.z.size(0)))
        return torch.stack([fused(x.weight, rows, labels)[0] for rows in each]).sum()

    return _step(case, draw(case), loss)


def _liger_ce(case: PairCase) -> Step:
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise Unavailable(f"Liger-Kernel: {error}") from error
    fused = LigerFusedLinearCrossEntropyLoss()
    return _step(case, draw(case), lambda x: _sum_over_latents(x, lambda rows: fused(x.weight, rows, x.labels)))


def _quack(case: PairCase) -> Step:
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"QuACK: {error}") from error
    return _step(
        case,
        draw(case),
        lambda x: _sum_over_latents(x, lambda rows: chunked_linear_cross_entropy(rows, x.weight, x.labels)),
    )


def _sum_over_latents(x: PairInputs, loss: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([loss(x.shifted(latent)) for latent in range(x.z.size(0))]).sum()


PROVIDERS: dict[str, Callable[[PairCase], Step]] = {
    "pytorch": _pytorch,
    "recompute": _ours("recompute"),
    "pairwise": _ours("pairwise"),
    "frozen": _ours("frozen"),
    "compile": _compile,
    "linear_cross_entropy": _linear_cross_entropy,
    "megatron": _megatron,
    "liger_dpo": _liger_dpo,
    "liger_ce": _liger_ce,
    "quack": _quack,
}
OTHER_JOBS = ("liger_dpo", "liger_ce", "quack")
