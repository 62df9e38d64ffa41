"""Plans on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from megatron_lpc.plan.fit import Change
from megatron_lpc.plan.gpus import GIB
from megatron_lpc.plan.options import PlanOptions
from megatron_lpc.plan.prediction import Plan, StagePlan
from megatron_lpc.plan.speed import Speed

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
_SECONDS = {
    "compute": "products",
    "tensor_parallel": "tensor parallel collectives",
    "pipeline_parallel": "exchanges between stages",
    "bubble": "pipeline bubble",
    "reference": "reference pass",
    "data_parallel": "data parallel collectives that do not overlap",
    "update": "optimizer",
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
    if plan.mean_batch != batch:
        mean = plan.mean_batch
        console.print(
            f"time and communication for pairs of {mean.lengths.prompt} + {mean.lengths.response} tokens: "
            f"{mean.pairs} per micro-batch, {mean.sequences} x {mean.seq_len} tokens"
        )
    console.print(_memory_table(plan))
    console.print(_communication_table(plan))
    if plan.speed is not None:
        options = plan.options
        console.print(
            f"a step on {options.world_size} {options.gpu}, if they reach {options.efficiency:.0%} of "
            f"{plan.speed.peak_tflops:g} TFLOP/s while they compute and {options.bandwidth_efficiency:.0%} of their "
            "bandwidth (assumptions):",
            soft_wrap=True,
        )
        console.print(_speed_table(plan.speed))
    if plan.limit is not None:
        verdict = "fits" if plan.fits else "does not fit"
        console.print(
            f"{verdict}: peak {plan.peak / GIB:.1f} GiB of {plan.limit / GIB:.1f} GiB, which are "
            f"{plan.options.memory_share:.0%} of {plan.options.gpu} ({plan.options.device.memory_gib:g} GiB)"
        )


def print_change(change: Change | None, console: Console) -> None:
    """What would make a run fit."""
    if change is None:
        console.print("no change of docs/plan.md makes it fit on so many GPUs")
        return
    console.print(f"smallest change: {change.flags}", soft_wrap=True)
    console.print(f"with it: peak {change.plan.peak / GIB:.1f} GiB{_rate(change.plan)}")


def _rate(plan: Plan) -> str:
    return "" if plan.speed is None else f", {plan.speed.pairs_per_second:.2f} pairs per second"


def print_layouts(plans: Sequence[Plan], options: PlanOptions, console: Console) -> None:
    """A table of parallel layouts, the fastest first."""
    console.print(
        f"layouts of {options.world_size} {options.gpu} that fit, if they reach {options.efficiency:.0%} of their peak "
        f"and {options.bandwidth_efficiency:.0%} of their bandwidth (assumptions):",
        soft_wrap=True,
    )
    table = Table()
    for heading in ("TP", "PP", "DP", "chunks", "micro-batch", "recompute", "peak GiB", "bubble", "MFU", "pairs/s"):
        table.add_column(heading, justify="right")
    for plan in plans:
        assert plan.speed is not None
        parallel = plan.config.parallel
        table.add_row(
            str(parallel.tensor_model_parallel_size),
            str(parallel.pipeline_model_parallel_size),
            str(plan.data_parallel),
            str(plan.schedule.chunks),
            str(plan.mean_batch.pairs),
            parallel.recompute_granularity or "none",
            f"{plan.peak / GIB:.1f}",
            f"{plan.schedule.bubble:.1%}",
            f"{plan.speed.mfu:.1%}",
            f"{plan.speed.pairs_per_second:.2f}",
        )
    console.print(table)
    if not plans:
        console.print("none fits")


def _memory_table(plan: Plan) -> Table:
    table = Table()
    table.add_column("memory of each rank, GiB; stage")
    for part in plan.stages:
        table.add_column(_stage_name(part), justify="right")
    table.add_row("layers", *(str(part.stage.layers) for part in plan.stages))
    table.add_row("parameters", *(f"{part.stage.parameters:,}" for part in plan.stages))
    for name, label in _MEMORY.items():
        values = [getattr(part.memory, name) for part in plan.stages]
        if any(values):
            table.add_row(label, *(f"{value / GIB:.2f}" for value in values), end_section=name in ("reference", "host"))
    return table


def _communication_table(plan: Plan) -> Table:
    parallel = plan.config.parallel
    ranks = {
        "TP": parallel.tensor_model_parallel_size,
        "PP": plan.schedule.stages,
        "DP": plan.data_parallel,
        "CP": 1,
        "EP": 1,
    }
    table = Table()
    table.add_column("sent by each rank in a step, GiB; group")
    table.add_column("ranks", justify="right")
    for part in plan.stages:
        table.add_column(f"stage {_stage_name(part)}", justify="right")
    for group, size in ranks.items():
        table.add_row(group, str(size), *(f"{part.sent[group] / GIB:.2f}" for part in plan.stages))
    return table


def _speed_table(speed: Speed) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, label in _SECONDS.items():
        value = getattr(speed, name)
        table.add_row(label, f"{value:.3f} s", end_section=name == "update")
    table.add_row("step", f"{speed.seconds:.3f} s")
    table.add_row("pairs per second", f"{speed.pairs_per_second:.2f}")
    table.add_row("FLOPs that the step demands", f"{speed.flops:.3g}")
    table.add_row("MFU", f"{speed.mfu:.1%}")
    return table


def _stage_name(part: StagePlan) -> str:
    stage = part.stage
    if stage.stages == 1:
        return str(stage.first_rank)
    return f"{stage.first_rank} to {stage.first_rank + stage.stages - 1}"
