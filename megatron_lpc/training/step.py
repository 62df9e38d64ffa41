"""One optimizer step: reference, forward and backward, update; and the numbers that describe it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_lpc.config import Config
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.losses import LatentSchedule, finish_metrics, sum_metrics
from megatron_lpc.platform import Platform
from megatron_lpc.training.collectives import MetricReducer
from megatron_lpc.training.mfu import mfu, model_flops, peak_tflops
from megatron_lpc.training.objective import TrainingObjective, training_query
from megatron_lpc.training.optimizer import optimizer_step
from megatron_lpc.training.pipeline import on_last_stage, train_pass
from megatron_lpc.training.reference import Reference


@dataclass(frozen=True)
class StepResult:
    """What came of a step, the same on every rank but for the time."""

    metrics: dict[str, float]
    updated: bool
    """False when the loss or a gradient was not finite and the weights were left alone."""


class TrainStep:
    """Steps of one run. Collectives: those of `train_pass`, `MetricReducer` and `optimizer_step`."""

    def __init__(
        self,
        config: Config,
        platform: Platform,
        chunks: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        reference: Reference,
        train_iters: int,
    ) -> None:
        self.config, self.platform, self.chunks = config, platform, chunks
        self.optimizer, self.scheduler, self.reference = optimizer, scheduler, reference
        self.schedule = LatentSchedule(config.latent, train_iters)
        self.reduce = MetricReducer(platform.device)
        self.peak_tflops = config.logging.peak_tflops or peak_tflops(platform, config.training.bf16)

    def __call__(self, batches: list[PairBatch], iteration: int) -> StepResult:
        """Train on this rank's micro-batches of step `iteration`, counted from 0."""
        began = time.perf_counter()
        latent = self.schedule.at(iteration)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        batches = self.reference.attach([batch.to(self.platform.device) for batch in batches])
        parts = train_pass(
            list(self.chunks), batches, training_query(self.config, latent), TrainingObjective(self.config, latent)
        )
        totals = self.reduce(sum_metrics(parts) if on_last_stage() else None)
        metrics = finish_metrics(totals)
        metrics["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        updated, metrics["grad_norm"] = optimizer_step(self.optimizer, math.isfinite(metrics["loss"]))
        self.scheduler.step(increment=1)
        self.platform.synchronize()
        seconds = time.perf_counter() - began

        tokens, response_tokens, attended, pairs = (int(number) for number in totals["work"])
        flops = model_flops(self.config, (tokens, response_tokens, attended, pairs))
        metrics |= {"lpc/tau": latent.tau, "lpc/prior_mix": latent.prior_mix, "lpc/kl_weight": latent.kl_weight}
        metrics |= {"skipped": float(not updated), "step_seconds": seconds, "tokens_per_sec": tokens / seconds}
        metrics["mfu"] = mfu(flops, seconds, dist.get_world_size(), self.peak_tflops)
        return StepResult(metrics, updated)
