"""The policy, and what trains it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import nn

from megatron_lpc.model import FreshWeights, build_model, unwrapped, wrap_data_parallel
from megatron_lpc.model.code_unit import set_code_unit
from megatron_lpc.training.checkpoint_tensors import load_all_weights, load_weights
from megatron_lpc.training.checkpoint_verification import open_checkpoint
from megatron_lpc.training.optimizer import build_optimizer, build_scheduler
from megatron_lpc.training.setup import RunContext


@dataclass(frozen=True, kw_only=True)
class TrainablePolicy:
    """This rank's model chunks with their optimizer and LR schedule."""

    chunks: list[DistributedDataParallel]
    """One per virtual pipeline stage, wrapped for data parallelism."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    train_iters: int
    """Steps of the whole run, over which the LR and latent schedules extend."""


def build_policy(context: RunContext, resumes: bool = False) -> list[nn.Module]:
    """This rank's chunks of the policy before its first step: fresh, or with the weights of `pretrained_checkpoint`.

    With `freeze_backbone` only the LPC head requires gradients, so that the data parallel wrapper and the optimizer,
    which skip what does not, keep nothing for the backbone.

    Collectives: with `pretrained_checkpoint`, those of `load_weights`.

    Args:
        resumes: all weights will be loaded from the checkpoint of a run. Until then they hold whatever was in memory.

    Raises:
        ConfigError: the checkpoint does not fit the model.
    """
    config = context.config
    pretrained = None if resumes else config.checkpoint.pretrained_checkpoint
    fresh: FreshWeights = "all"
    if resumes:
        fresh = "none"
    elif pretrained:
        fresh = "latent_head"  # The checkpoint may lack it.
    chunks = build_model(config, context.platform, context.groups, config.latent, fresh)
    if pretrained:
        has_latent = config.latent.latent_mode != "none"
        load_weights(
            chunks, open_checkpoint(pretrained, context), groups=context.groups, latent_head=has_latent, config=config
        )
        set_code_unit(unwrapped(chunks[-1]))
    if config.training.freeze_backbone:
        for chunk in chunks:
            unwrapped(chunk).freeze_backbone()
    return chunks


def load_policy(context: RunContext, path: str | Path) -> list[nn.Module]:
    """This rank's chunks of a trained policy, without an optimizer: for evaluation.

    Strict, unlike a start from pretrained weights: an LPC head that the checkpoint lacks would have no weights.

    Collectives: those of `load_all_weights`.

    Args:
        path: one `iter_*` folder, or the latest in a folder of them.

    Raises:
        ConfigError: the checkpoint is not of such a model.
    """
    config = context.config
    chunks = build_model(config, context.platform, context.groups, config.latent, fresh="none")
    load_all_weights(chunks, open_checkpoint(path, context), groups=context.groups, config=config)
    return chunks


def make_trainable(context: RunContext, chunks: list[nn.Module], train_iters: int) -> TrainablePolicy:
    """Wrap a policy for data parallelism, and build its optimizer and LR schedule."""
    wrapped = wrap_data_parallel(context.config, chunks)
    optimizer = build_optimizer(context.config, wrapped)
    return TrainablePolicy(
        chunks=wrapped,
        optimizer=optimizer,
        scheduler=build_scheduler(context.config, optimizer, train_iters),
        train_iters=train_iters,
    )
