"""One optimizer step: reference, forward and backward, update; and the numbers that describe it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from megatron_lpc.config import samples_codes
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import LatentSchedule, LatentState, finish_metrics, sum_metrics
from megatron_lpc.training.collectives import MetricReducer
from megatron_lpc.training.mfu import mfu, model_flops, peak_tflops
from megatron_lpc.training.objective import TrainingLoss, training_query
from megatron_lpc.training.optimizer import gradient_norm, update_weights
from megatron_lpc.training.phases import STEP, now_doing
from megatron_lpc.training.pipeline import train_head_pass, train_pass
from megatron_lpc.training.policy import TrainablePolicy
from megatron_lpc.training.reference import Reference
from megatron_lpc.training.setup import RunContext


@dataclass(frozen=True)
class StepResult:
    """What came of a step: the same on every rank, but for the time."""

    metrics: dict[str, float]
    totals: dict[str, Tensor]
    """Sums over the pairs of the global batch from which `metrics` are made; fp64, on the CPU."""
    updated: bool
    """False when the loss or a gradient was not finite, and the weights were left unchanged."""


class TrainStep:
    """Steps of one run.

    The host waits for its device once per step: when it reads the gradient norm, with which the metrics come. So the
    update of the weights still runs when the next step is being prepared, and counts in the time of that one.

    Collectives: those of the reference, of `train_pass` or `train_head_pass`, of `MetricReducer`, `gradient_norm` and
    `update_weights`.
    """

    def __init__(self, context: RunContext, policy: TrainablePolicy, reference: Reference) -> None:
        config, platform = context.config, context.platform
        self._context = context
        self._policy = policy
        self._reference = reference
        self._latent_schedule = LatentSchedule(config.latent, policy.train_iters)
        self._samples_codes = samples_codes(config.latent)
        self._has_divergence = self._samples_codes or config.latent.latent_mode == "gaussian"
        self._reduce_metrics = MetricReducer(context.groups, platform)
        self._peak_tflops = config.logging.peak_tflops or peak_tflops(platform, bool(config.training.bf16))

    def __call__(self, batches: list[PairBatch], iteration: int) -> StepResult:
        """Train on this rank's micro-batches of step `iteration`, counted from 0."""
        began = time.perf_counter()
        latent = self._latent_schedule.at(iteration)
        optimizer = self._policy.optimizer
        now_doing(STEP)
        sums = self._forward_backward(batches, latent)
        now_doing("optimizer")
        norm = gradient_norm(optimizer)  # The one wait for the device.
        totals = sums()
        metrics = finish_metrics(totals)
        metrics["lr"] = self._policy.scheduler.get_lr({})
        metrics["grad_norm"] = norm
        updated = math.isfinite(metrics["loss"]) and math.isfinite(norm)
        if updated:
            update_weights(optimizer, norm)
        self._policy.scheduler.step(increment=1)
        seconds = time.perf_counter() - began

        if self._samples_codes:
            metrics["lpc/tau"] = latent.tau
            metrics["lpc/prior_mix"] = latent.prior_mix
        if self._has_divergence:
            metrics["lpc/kl_weight"] = latent.kl_weight
        metrics["skipped"] = float(not updated)
        metrics |= self._speed(totals["work"], seconds)
        return StepResult(metrics, totals, updated)

    def _forward_backward(self, batches: list[PairBatch], latent: LatentState) -> Callable[[], dict[str, Tensor]]:
        """Leave gradients in the buffers, and start to sum the metrics over the global batch."""
        config, policy = self._context.config, self._policy
        for chunk in policy.chunks:
            chunk.zero_grad_buffer()
        policy.optimizer.zero_grad()
        on_device = [batch.to(self._context.platform.device) for batch in batches]
        with_reference = self._reference.attach(on_device)
        query = training_query(config, latent)
        run_pass = train_head_pass if config.training.freeze_backbone else train_pass
        parts = run_pass(policy.chunks, with_reference, query, TrainingLoss(config, latent))
        return self._reduce_metrics(sum_metrics(parts) if self._context.groups.is_last_stage else None)

    def _speed(self, work: Tensor, seconds: float) -> dict[str, float]:
        """`work`: that of `mfu.batch_work`, over the global batch."""
        tokens, response_tokens, attended, pairs = (int(number) for number in work)
        flops = model_flops(self._context.config, (tokens, response_tokens, attended, pairs))
        return {
            "step_seconds": seconds,
            "tokens_per_sec": tokens / seconds,
            "mfu": mfu(flops, seconds, dist.get_world_size(), self._peak_tflops),
        }
