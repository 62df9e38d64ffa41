"""The smallest change that makes a run fit.

Changes are tried in this order, which begins with what costs least to do: recomputation, first of attention and then of
whole layers; smaller micro-batches, or shorter packed sequences; sequence parallelism; the reference on the host, then
precomputed; more pipeline and tensor parallel ranks; the distributed optimizer. The first that is enough by itself is
the answer. Where none is, they are made one after the other until the run fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_lpc.command_line import flag_of
from megatron_lpc.config import Config, ConfigError, shown, with_options
from megatron_lpc.data.costs import pair_tokens
from megatron_lpc.plan.memory import has_reference_model
from megatron_lpc.plan.micro_batch import longest_lengths
from megatron_lpc.plan.options import resolved
from megatron_lpc.plan.prediction import Plan, make_plan

Options = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """What makes a run fit."""

    options: Options
    """Option name -> value."""
    plan: Plan
    """With it."""

    @property
    def flags(self) -> str:
        """As they are typed."""
        return " ".join(_flag(name, value) for name, value in self.options.items())


def smallest_change(plan: Plan) -> Change | None:
    """The change that makes a run fit; None where none of them is enough on as many devices."""
    groups = [list(candidates(plan.config)) for candidates in CANDIDATES]
    for options in (options for group in groups for options in group):
        changed = _plan_with(plan, options)
        if changed is not None and changed.fits:
            return Change(options, changed)
    return _all_together(plan)


def _all_together(plan: Plan) -> Change | None:
    made: Options = {}
    reached = plan
    for candidates in CANDIDATES:
        # What a change allows depends on those before it.
        for options in candidates(reached.config):
            changed = _plan_with(plan, made | options)
            if changed is None or changed.peak >= reached.peak:
                continue
            made, reached = made | options, changed
            if reached.fits:
                return Change(made, reached)
    return None


def _plan_with(plan: Plan, options: Options) -> Plan | None:
    """The plan with other options; None where they break a rule of the project."""
    world_size = plan.options.world_size
    try:
        return make_plan(resolved(with_options(plan.config, **options), world_size), plan.options)
    except ConfigError:
        return None


def recomputation(config: Config) -> Iterator[Options]:
    """Of attention, then of whole layers."""
    granularity = config.parallel.recompute_granularity
    if config.training.freeze_backbone or granularity == "full":
        return
    if granularity is None:
        yield {"recompute_granularity": "selective"}
    yield {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def smaller_micro_batches(config: Config) -> Iterator[Options]:
    """Half as many pairs, and so on; or packed sequences of half as many tokens, while the longest pair fits."""
    pack_to = config.data.pack_to
    if pack_to is None:
        size = config.training.micro_batch_size // 2
        while size >= 1:
            yield {"micro_batch_size": size}
            size //= 2
        return
    longest = int(pair_tokens(longest_lengths(config).array, config.data.share_prompt)[0])
    while (pack_to := pack_to // 2) >= longest:
        yield {"pack_to": pack_to}


def sequence_parallelism(config: Config) -> Iterator[Options]:
    """Where there are tensor parallel ranks."""
    if config.parallel.tensor_model_parallel_size > 1 and not config.parallel.sequence_parallel:
        yield {"sequence_parallel": True}


def reference_elsewhere(config: Config) -> Iterator[Options]:
    """On the host, or computed beforehand."""
    if not has_reference_model(config):
        return
    if not config.loss.reference_offload:
        yield {"reference_offload": True}
    if not config.data.streaming:
        yield {"reference_offload": False, "reference": "precomputed", "reference_cache": "reference-logps"}


def more_model_parallel_ranks(config: Config) -> Iterator[Options]:
    """Twice as many ranks per copy of the model, and so on: pipeline before tensor parallel ranks."""
    parallel = config.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    for doublings in range(1, 7):
        for of_tensor in range(doublings + 1):
            options: Options = {"pipeline_model_parallel_size": pipeline << (doublings - of_tensor)}
            if of_tensor:
                options |= {"tensor_model_parallel_size": tensor << of_tensor, "sequence_parallel": True}
            yield options


def distributed_optimizer(config: Config) -> Iterator[Options]:
    """Its state shared by data parallel ranks."""
    if not config.parallel.use_distributed_optimizer:
        yield {"use_distributed_optimizer": True}


CANDIDATES: tuple[Callable[[Config], Iterator[Options]], ...] = (
    recomputation,
    smaller_micro_batches,
    sequence_parallelism,
    reference_elsewhere,
    more_model_parallel_ranks,
    distributed_optimizer,
)
"""Changes, in the order in which they are tried."""


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag_of(name) if value else flag_of(f"no_{name}")
    return f"{flag_of(name)} {shown(value)}"
