"""Optimizer and LR schedule from megatron-core, and the two halves of a step, between which it can be refused."""

from __future__ import annotations

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    clip_grads,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_lpc.config import Config
from megatron_lpc.platform.patches.gradient_norm import compute_gradient_norm_on_device
from megatron_lpc.training.learning_rates import head_learning_rates, peak_lr
from megatron_lpc.training.optimizer_state import counts_by_parameter, stateful_parts


def build_optimizer(config: Config, chunks: list[DistributedDataParallel]) -> MegatronOptimizer:
    """AdamW with fp32 master weights, its state sharded over data parallel ranks with `use_distributed_optimizer`.

    The LPC head has its own peak learning rates: see `head_learning_rates`. megatron-core takes TransformerEngine's
    FusedAdam where it is installed, and torch's AdamW elsewhere, on CUDA with the fused kernel.
    """
    compute_gradient_norm_on_device()
    training, parallel = config.training, config.parallel
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=peak_lr(training),
        min_lr=training.min_lr,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_eps=training.adam_eps,
        clip_grad=training.clip_grad,
        bf16=bool(training.bf16),
        params_dtype=torch.bfloat16 if training.bf16 else torch.float32,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(optimizer_config)
    if config.latent.latent_mode != "none":
        last = training.min_lr / (peak_lr(training) or 1.0)
        for name, peak in head_learning_rates(config).items():
            overrides[ParamKey(name=f"*latent_head.{name}")] = {"max_lr": peak, "min_lr": last * peak}
    optimizer = get_megatron_optimizer(
        optimizer_config, chunks, config_overrides=overrides, use_gloo_process_groups=False
    )
    for part in stateful_parts(optimizer):
        choose_adam_kernel(part.optimizer)
    return optimizer


def choose_adam_kernel(inner: torch.optim.Optimizer) -> None:
    """Let torch's AdamW update with one fused kernel on CUDA, one parameter after the other elsewhere.

    Never with `foreach`, torch's default on CUDA: it holds another fp32 copy of what it updates. Optimizers of other
    libraries are fused already.
    """
    if not counts_by_parameter(inner):
        return
    for group in inner.param_groups:
        is_cuda = all(parameter.is_cuda for parameter in group["params"])
        group.update(fused=is_cuda, foreach=False)


def build_scheduler(config: Config, optimizer: MegatronOptimizer, train_iters: int) -> OptimizerParamScheduler:
    """LR schedule: linear warm-up, then the decay; counted in steps."""
    training = config.training
    warmup_iters = int(training.lr_warmup_fraction * train_iters)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=peak_lr(training),
        min_lr=training.min_lr,
        lr_warmup_steps=min(warmup_iters, train_iters - 1),
        lr_decay_steps=train_iters,
        lr_decay_style=training.lr_decay_style,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
    )


@torch.no_grad()
def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Norm of all gradients, the same on every rank; waits for the device.

    Collectives: one all-reduce of the squared norm over the model parallel group (over the world with the distributed
    optimizer).
    """
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


@torch.no_grad()
def update_weights(optimizer: MegatronOptimizer, norm: float) -> None:
    """Clip gradients of this norm, which `gradient_norm` has told, and update weights.

    Collectives: the distributed optimizer's all-gather of parameters over the data parallel group.
    """
    max_norm = optimizer.config.clip_grad
    if max_norm > 0:
        for part in stateful_parts(optimizer):
            clip_grads.clip_grad_by_total_norm_fp32(part.get_parameters(), max_norm, norm)
    optimizer.step_with_ready_grads()
