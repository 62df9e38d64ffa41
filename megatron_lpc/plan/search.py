"""Parallel layouts of one run on so many devices, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from megatron_lpc.config import Config, ConfigError, with_options
from megatron_lpc.plan.options import PlanOptions, resolved
from megatron_lpc.plan.prediction import Plan, make_plan

_MICRO_BATCHES = (1, 2, 4, 8)
_RECOMPUTATION: tuple[dict[str, Any], ...] = (
    {"recompute_granularity": None, "recompute_method": None, "recompute_num_layers": None},
    {"recompute_granularity": "selective", "recompute_method": None, "recompute_num_layers": None},
    {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
)


def search(config: Config, options: PlanOptions) -> list[Plan]:
    """The fastest plan that fits of each parallel layout TP x PP x DP, by pairs per second.

    Layouts are those that the project's rules allow: TP within the devices that NVLink connects, with sequence
    parallelism. For each of them recomputation and, where pairs are not packed, the micro-batch size are chosen too,
    and interleaving is left out where it does not divide. Everything else is as the options say.

    Raises:
        ConfigError: no layout is allowed, or no time is predicted for such a run.
    """
    found: list[Plan] = []
    refused: ConfigError | None = None
    is_allowed = False
    for layout in _layouts(config, options):
        plans = []
        for chosen in _variants(config, layout):
            try:
                plans.append(make_plan(resolved(with_options(config, **chosen), options.world_size), options))
            except ConfigError as error:
                refused = refused or error
        is_allowed = is_allowed or bool(plans)
        fitting = [plan for plan in plans if plan.fits]
        if fitting:
            found.append(max(fitting, key=_rate))
    if refused is not None and not is_allowed:
        raise refused
    return sorted(found, key=_rate, reverse=True)


def _rate(plan: Plan) -> float:
    if plan.speed is None:
        raise ConfigError(
            "--search: ranks by time, which is predicted for GPUs in bf16; drop --device cpu and --no-bf16"
        )
    return plan.speed.pairs_per_second


def _layouts(config: Config, options: PlanOptions) -> Iterator[dict[str, Any]]:
    world_size = options.world_size
    for tensor in _divisors(world_size):
        if tensor > options.device.nvlink_domain:
            continue
        for pipeline in _divisors(world_size // tensor):
            if config.model.num_layers % pipeline:
                continue
            yield {
                "tensor_model_parallel_size": tensor,
                "pipeline_model_parallel_size": pipeline,
                "sequence_parallel": tensor > 1,
            }


def _variants(config: Config, layout: dict[str, Any]) -> Iterator[dict[str, Any]]:
    virtual = config.parallel.num_virtual_stages_per_pipeline_rank
    sizes = [{}] if config.data.pack_to is not None else [{"micro_batch_size": size} for size in _MICRO_BATCHES]
    recomputation = ({},) if config.training.freeze_backbone else _RECOMPUTATION
    for chunks, size, recomputed in product(dict.fromkeys((None, virtual)), sizes, recomputation):
        yield layout | size | recomputed | {"num_virtual_stages_per_pipeline_rank": chunks}


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
