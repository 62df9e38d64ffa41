"""Training by this project."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from benchmarks.training.meter import Meter
from benchmarks.training.providers import counterpart
from benchmarks.training.workload import Workload
from megatron_lpc.training.build import assemble_run
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep


class Steps:
    """The training steps of a run, one per call."""

    def __init__(self, context: RunContext) -> None:
        run = assemble_run(context)
        self._step = TrainStep(run.context, run.policy, run.reference)
        self._batches = run.batches()

    def __call__(self, iteration: int) -> None:
        self._step(next(self._batches), iteration)


def measure_ours(work: Workload, provider: str) -> dict[str, Any]:
    """Seconds and memory of a provider of this project, and the seconds before its first step: building, and with a
    cache of hidden states filling it, in the first round.
    """
    context = start_distributed(work.config(provider))
    meter = Meter(work.device)
    began = time.perf_counter()
    step = Steps(context)
    build_seconds = time.perf_counter() - began
    for iteration in range(work.steps + 1):
        step(iteration)
        meter.step_ended()
    stop_distributed()
    return meter.result() | {"build_seconds": build_seconds}


def measure_alternating(work: Workload, provider: str) -> dict[str, Any]:
    """Seconds of the steps of a provider with LPC, and of those of its counterpart with which they alternate."""
    context = start_distributed(work.config(provider))
    lpc = Steps(context)
    plain = Steps(replace(context, config=work.config(counterpart(provider))))
    lpc_seconds, plain_seconds = [], []
    for iteration in range(work.steps + 1):
        # Which of them goes first alternates too.
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
