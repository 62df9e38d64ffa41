"""Losses on top of an LM head as other libraries compute them. Each is left out where its library does not run."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.pair_inputs import BETA, PairInputs, draw
from benchmarks.kernels.pair_step import pair_step
from benchmarks.kernels.step import Step, Unavailable


def megatron(case: PairCase) -> Step:
    """Logits and megatron-core's vocabulary-parallel cross entropy, in a group of one process."""
    try:
        with warnings.catch_warnings(action="ignore"):
            from megatron.core import parallel_state
            from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
    except ImportError as error:
        raise Unavailable(f"megatron-core: {error}") from error
    _group_of_one(case)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()

    def loss(x: PairInputs) -> Tensor:
        cross_entropies = [
            vocab_parallel_cross_entropy((hidden @ x.lm_head_weight.t()).float(), x.targets)
            for hidden in x.each_shifted()
        ]
        return x.loss(-torch.stack(cross_entropies))

    return pair_step(case, draw(case), loss)


def liger_tp(case: PairCase) -> Step:
    """Liger-Kernel's vocabulary-parallel fused linear cross entropy, in a group of one process.

    On an H100 or H200 in bf16 its own kernels run where `liger-cute-kernels` is installed, else chunks of 512 tokens in
    PyTorch; it takes CUDA tensors only.
    """
    try:
        from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyTPFunction as Fused
    except ImportError as error:
        raise Unavailable(f"Liger-Kernel: {error}") from error
    group = _group_of_one(case)

    def loss(x: PairInputs) -> Tensor:
        cross_entropies = [Fused.apply(hidden, x.lm_head_weight, x.labels, group) for hidden in x.each_shifted()]
        return x.loss(-torch.stack(cross_entropies))

    return pair_step(case, draw(case), loss)


def trl(case: PairCase) -> Step:
    """TRL's chunked log-probs of the loss tokens, as its `DPOTrainer` calls them, without what it logs."""
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as vocab_chunk
    except ImportError as error:
        raise Unavailable(f"TRL: {error}") from error

    def logps(x: PairInputs, hidden: Tensor) -> Tensor:
        """[N] log-probs, 0 without loss."""
        bias = softcap = None
        temperature = logit_scale = 1.0
        real, weight, targets = hidden[x.real], x.lm_head_weight, x.targets[x.real]
        options = (temperature, vocab_chunk, softcap, logit_scale, ("log_probs",))
        of_loss_tokens = ChunkedLogProbFunction.apply(real, weight, bias, targets, *options)[0]
        return of_loss_tokens.new_zeros(x.real.shape).masked_scatter(x.real, of_loss_tokens)

    def loss(x: PairInputs) -> Tensor:
        return x.loss(torch.stack([logps(x, hidden) for hidden in x.each_shifted()]))

    return pair_step(case, draw(case), loss)


def liger_dpo(case: PairCase) -> Step:
    """Liger-Kernel's fused linear DPO loss."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
    except ImportError as error:
        raise Unavailable(f"Liger-Kernel: {error}") from error
    fused = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False)

    def loss(x: PairInputs) -> Tensor:
        labels = x.labels.view(2 * case.pairs, -1)

        def under_latent(hidden: Tensor) -> Tensor:
            return fused(x.lm_head_weight, hidden.view(*labels.shape, -1), labels)[0]

        return _sum_over_latents(x, under_latent)

    return pair_step(case, draw(case), loss)


def liger_ce(case: PairCase) -> Step:
    """Liger-Kernel's fused linear cross entropy."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise Unavailable(f"Liger-Kernel: {error}") from error
    fused = LigerFusedLinearCrossEntropyLoss()

    def loss(x: PairInputs) -> Tensor:
        return _sum_over_latents(x, lambda hidden: fused(x.lm_head_weight, hidden, x.labels))

    return pair_step(case, draw(case), loss)


def quack(case: PairCase) -> Step:
    """QuACK's chunked linear cross entropy."""
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"QuACK: {error}") from error

    def loss(x: PairInputs) -> Tensor:
        return _sum_over_latents(x, lambda hidden: chunked_linear_cross_entropy(hidden, x.lm_head_weight, x.labels))

    return pair_step(case, draw(case), loss)


def _group_of_one(case: PairCase) -> dist.ProcessGroup:
    """The default process group; of this process alone, unless there is one."""
    if not dist.is_initialized():
        backend = "gloo" if case.device == "cpu" else "nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    assert group is not None
    return group


def _sum_over_latents(x: PairInputs, loss: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([loss(hidden) for hidden in x.each_shifted()]).sum()
