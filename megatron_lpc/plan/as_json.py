"""Plans as JSON: everything, in bytes, seconds, tokens and numbers of parameters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megatron_lpc.plan.fit import Change
from megatron_lpc.plan.prediction import Plan
from megatron_lpc.plan.speed import Speed


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """One plan."""
    return {
        "world_size": plan.options.world_size,
        "gpu": plan.options.gpu,
        "memory_share": plan.options.memory_share,
        "parallel": asdict(plan.config.parallel) | {"data_parallel_size": plan.data_parallel},
        "model_parameters": plan.model_parameters,
        "latent_parameters": plan.latent_parameters,
        "micro_batch": asdict(plan.batch),
        "mean_micro_batch": asdict(plan.mean_batch),
        "micro_batches": plan.schedule.micro_batches,
        "bubble": plan.schedule.bubble,
        "peak_bytes": plan.peak,
        "limit_bytes": plan.limit,
        "fits": plan.fits,
        "assumptions": {
            "efficiency": plan.options.efficiency,
            "bandwidth_efficiency": plan.options.bandwidth_efficiency,
        },
        "speed": None if plan.speed is None else _speed_as_dict(plan.speed),
        "stages": [
            asdict(part.stage)
            | {"memory": part.memory.as_dict() | {"phases": part.memory.phases}, "sent_bytes": part.sent}
            for part in plan.stages
        ],
    }


def _speed_as_dict(speed: Speed) -> dict[str, float]:
    """Seconds, pairs per second, FLOPs and MFU."""
    totals = {"seconds": speed.seconds, "pairs_per_second": speed.pairs_per_second, "mfu": speed.mfu}
    return asdict(speed) | totals


def change_as_dict(change: Change | None) -> dict[str, Any] | None:
    """Options and what comes of them; None where there is no such change."""
    if change is None:
        return None
    return {"options": change.options, "flags": change.flags, "peak_bytes": change.plan.peak}
