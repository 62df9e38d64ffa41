"""Training by this project."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from megatron_lpc.training.inputs import open_inputs
from megatron_lpc.training.loaders import pair_loader
from megatron_lpc.training.policy import build_policy, make_trainable

from benchmarks.training.meter import Meter
from benchmarks.training.providers import without_lpc
from benchmarks.training.workload import Workload
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.training.reference import build_references
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep


class Steps:
    """Training steps of this project, built from the parts of its training program, for two can share one process."""

    def __init__(self, context: RunContext, data: PairDataset) -> None:
        context, tokenizer = open_inputs(context)
        config = context.config
        assert config.training.train_iters is not None
        chunks = build_policy(context)
        (reference,) = build_references(context, chunks, [("train", data)])
        policy = make_trainable(context, chunks, config.training.train_iters)
        self._step = TrainStep(context, policy, reference)
        self._stream = pair_loader(context, tokenizer, data).training(config.training.seed)

    def __call__(self, iteration: int) -> None:
        self._step(next(self._stream), iteration)


def measure_ours(work: Workload, provider: str) -> dict[str, Any]:
    """Seconds and memory of a provider of this project."""
    context = start_distributed(work.config(provider))
    data = work.dataset()
    meter = Meter(work.device)
    step = Steps(context, data)
    for iteration in range(work.steps + 1):
        step(iteration)
        meter.step_ended()
    stop_distributed()
    return meter.result()


def measure_alternating(work: Workload, provider: str) -> dict[str, Any]:
    """Seconds of the steps of a provider with LPC, and of those without LPC with which they alternate."""
    configs = [work.config(name) for name in (provider, without_lpc(provider))]
    context = start_distributed(configs[0])
    data = work.dataset()
    lpc, plain = (Steps(replace(context, config=config), data) for config in configs)
    lpc_seconds, plain_seconds = [], []
    for iteration in range(work.steps + 1):
        # Which one goes first alternates too.
        if iteration % 2:
            lpc_seconds.append(_seconds(lpc, iteration))
            plain_seconds.append(_seconds(plain, iteration))
        else:
            plain_seconds.append(_seconds(plain, iteration))
            lpc_seconds.append(_seconds(lpc, iteration))
    stop_distributed()
    return {"seconds": lpc_seconds[1:], "plain": plain_seconds[1:]}


def _seconds(step: Steps, iteration: int) -> float:
    start = time.perf_counter()
    step(iteration)
    return time.perf_counter() - start
