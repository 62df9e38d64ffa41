"""A plan on the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_lpc.plan.gpus import GIB
from megatron_lpc.plan.prediction import Plan, StagePlan

_MEMORY = {
    "weights": "weights",
    "gradients": "gradients (fp32)",
    "optimizer": "optimizer state",
    "reference": "reference",
    "activations": "activations in flight",
    "workspace": "workspace of a pass",
    "lm_head": "  of it, the LM head's chunk",
    "reference_pass": "workspace of a reference pass",
    "update": "workspace of an update",
    "save": "copies of a save",
    "host": "on the host",
    "peak": "peak",
}


def print_plan(plan: Plan, console: Console) -> None:
    """The layout, and a table of the memory of each stage."""
    parallel, schedule = plan.config.parallel, plan.schedule
    console.print(
        f"{plan.options.world_size} ranks: TP {parallel.tensor_model_parallel_size} x "
        f"PP {schedule.stages}{f' ({schedule.chunks} chunks each)' if schedule.chunks > 1 else ''} x "
        f"DP {plan.data_parallel}; {plan.model_parameters:,} parameters and {plan.latent_parameters:,} of the LPC head"
    )
    batch = plan.batch
    console.print(
        f"{plan.config.training.global_batch_size} pairs per step, {batch.pairs} per micro-batch "
        f"({batch.sequences} x {batch.seq_len} tokens), {schedule.micro_batches} micro-batches per rank; "
        f"pipeline bubble {schedule.bubble:.1%}"
    )
    console.print(_memory_table(plan))
    if plan.limit is not None:
        verdict = "fits" if plan.fits else "does not fit"
        console.print(
            f"{verdict}: peak {plan.peak / GIB:.1f} GiB of {plan.limit / GIB:.1f} GiB, which are "
            f"{plan.options.memory_share:.0%} of {plan.options.gpu} ({plan.options.device.memory_gib:g} GiB)"
        )


def _memory_table(plan: Plan) -> Table:
    table = Table(title="memory of each rank, GiB", title_justify="left")
    table.add_column("stage")
    for part in plan.stages:
        table.add_column(_stage_name(part), justify="right")
    table.add_row("layers", *(str(part.stage.layers) for part in plan.stages))
    table.add_row("parameters", *(f"{part.stage.parameters:,}" for part in plan.stages))
    for name, label in _MEMORY.items():
        values = [getattr(part.memory, name) for part in plan.stages]
        if any(values):
            table.add_row(label, *(f"{value / GIB:.2f}" for value in values), end_section=name in ("reference", "host"))
    return table


def _stage_name(part: StagePlan) -> str:
    stage = part.stage
    if stage.stages == 1:
        return str(stage.first_rank)
    return f"{stage.first_rank} to {stage.first_rank + stage.stages - 1}"


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """Everything, for JSON; bytes, tokens and numbers of parameters."""
    return {
        "world_size": plan.options.world_size,
        "gpu": plan.options.gpu,
        "memory_share": plan.options.memory_share,
        "parallel": asdict(plan.config.parallel) | {"data_parallel_size": plan.data_parallel},
        "model_parameters": plan.model_parameters,
        "latent_parameters": plan.latent_parameters,
        "micro_batch": asdict(plan.batch),
        "micro_batches": plan.schedule.micro_batches,
        "bubble": plan.schedule.bubble,
        "peak_bytes": plan.peak,
        "limit_bytes": plan.limit,
        "fits": plan.fits,
        "stages": [
            asdict(part.stage) | {"memory": part.memory.as_dict() | {"phases": part.memory.phases}}
            for part in plan.stages
        ],
    }
