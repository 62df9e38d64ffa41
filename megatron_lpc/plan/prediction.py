"""The plan of one run in one parallel layout."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config import Config, data_parallel_size
from megatron_lpc.plan.gpus import GIB
from megatron_lpc.plan.memory import MemoryModel, StageMemory
from megatron_lpc.plan.micro_batch import MicroBatch, longest_lengths, micro_batch, micro_batches_per_step
from megatron_lpc.plan.options import PlanOptions, device_type
from megatron_lpc.plan.schedule import PipelineSchedule
from megatron_lpc.plan.stages import Stage, distinct_stages


@dataclass(frozen=True)
class StagePlan:
    """A pipeline stage, and the memory of each of its ranks."""

    stage: Stage
    memory: StageMemory


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is predicted of a run."""

    config: Config
    options: PlanOptions
    batch: MicroBatch
    """Of the longest pairs, for which memory is planned."""
    schedule: PipelineSchedule
    stages: tuple[StagePlan, ...]

    @property
    def data_parallel(self) -> int:
        return data_parallel_size(self.config, self.options.world_size)

    @property
    def model_parameters(self) -> int:
        """Parameters of the backbone."""
        return sum(part.stage.stages * part.stage.model_parameters for part in self.stages)

    @property
    def latent_parameters(self) -> int:
        """Parameters of the LPC head."""
        return sum(part.stage.latent_parameters for part in self.stages)

    @property
    def peak(self) -> int:
        """Bytes of the rank that needs most."""
        return max(part.memory.peak for part in self.stages)

    @property
    def limit(self) -> int | None:
        """Bytes that tensors may take of a GPU; None on a CPU, whose memory is not known."""
        if device_type(self.config) == "cpu":
            return None
        return int(self.options.memory_share * self.options.device.memory_gib * GIB)

    @property
    def fits(self) -> bool:
        return self.limit is None or self.peak <= self.limit


def make_plan(config: Config, options: PlanOptions) -> Plan:
    """Plan a run.

    Args:
        config: as `options.resolved` gives it.
    """
    device = device_type(config)
    batch = micro_batch(config, longest_lengths(config), device)
    schedule = PipelineSchedule(
        stages=config.parallel.pipeline_model_parallel_size,
        micro_batches=micro_batches_per_step(config, batch, options.world_size),
        chunks=config.parallel.num_virtual_stages_per_pipeline_rank or 1,
    )
    model = MemoryModel(config=config, device_type=device, batch=batch, schedule=schedule)
    stages = distinct_stages(config, options.world_size)
    return Plan(
        config=config,
        options=options,
        batch=batch,
        schedule=schedule,
        stages=tuple(StagePlan(stage, model.of_stage(stage)) for stage in stages),
    )
