"""Floating-point operations of a run: what the objective demands, and what the devices compute.

Both by the formulas of `training/mfu.py`, by which training computes its MFU. Devices compute more: padding,
activations that are computed again, and logits that are made twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config import Config, with_options
from megatron_lpc.plan.lm_head import LMHeadSizes
from megatron_lpc.plan.memory import has_reference_model
from megatron_lpc.plan.micro_batch import MicroBatch
from megatron_lpc.plan.stages import Stage
from megatron_lpc.training.mfu import model_flops

_FORWARD_SHARE = 1 / 3
"""Of forward and backward pass: 2 of 6 FLOPs per weight and token."""
_RECOMPUTE_SHARE = 8 / 6
"""Large products of the algorithm `recompute` of `pair_logps`, in those of `pairwise`."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Of one micro-batch, over all its tensor parallel ranks."""

    layers: float
    """Forward and backward pass of all transformer layers, recomputation included."""
    lm_head: float
    latent_head: float
    """On each tensor parallel rank: they all compute it."""
    reference_layers: float
    """The reference's forward pass; 0 without one."""
    reference_head: float

    def of_rank(self, stage: Stage, num_layers: int, tensor: int) -> float:
        """FLOPs of a rank of a stage for the micro-batch, without the reference's."""
        total = self.layers * stage.layers / num_layers
        if not stage.is_last:
            return total / tensor
        return (total + self.lm_head) / tensor + self.latent_head

    def of_rank_reference(self, stage: Stage, num_layers: int, tensor: int) -> float:
        """The same of the reference pass."""
        total = self.reference_layers * stage.layers / num_layers
        return (total + (self.reference_head if stage.is_last else 0)) / tensor


def computed_flops(config: Config, batch: MicroBatch, head: LMHeadSizes) -> Flops:
    """What devices compute for a micro-batch."""
    policy = _without_reference(config)
    tokens, loss_tokens, attended, pairs = batch.computed
    layers = model_flops(policy, (tokens, 0, attended, 0))
    attention = model_flops(policy, (0, 0, attended, 0))
    lm_head = model_flops(policy, (0, loss_tokens, 0, 0))
    with_reference = has_reference_model(config)
    return Flops(
        layers=layers + _recomputed(config, layers, attention),
        lm_head=lm_head * (_RECOMPUTE_SHARE if head.algorithm == "recompute" else 1),
        latent_head=model_flops(policy, (0, 0, 0, pairs)),
        reference_layers=_FORWARD_SHARE * layers if with_reference else 0.0,
        reference_head=_FORWARD_SHARE * lm_head if with_reference else 0.0,
    )


def demanded_flops(config: Config, batch: MicroBatch) -> float:
    """What the objective demands of a step, over all ranks: the numerator of MFU."""
    return model_flops(config, batch.demanded) * config.training.global_batch_size / batch.pairs


def _without_reference(config: Config) -> Config:
    return with_options(config, reference="precomputed")


def _recomputed(config: Config, layers: float, attention: float) -> float:
    """FLOPs of the forward passes that the backward pass repeats."""
    parallel = config.parallel
    if config.training.freeze_backbone or parallel.recompute_granularity is None:
        return 0.0
    if parallel.recompute_granularity == "selective":
        return _FORWARD_SHARE * attention
    if parallel.recompute_method == "uniform":
        return _FORWARD_SHARE * layers
    assert parallel.recompute_num_layers is not None
    chunks = parallel.pipeline_model_parallel_size * (parallel.num_virtual_stages_per_pipeline_rank or 1)
    return _FORWARD_SHARE * layers * parallel.recompute_num_layers * chunks / config.model.num_layers
