"""The plan of one run in one parallel layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_lpc.config import Config, ConfigError, data_parallel_size
from megatron_lpc.plan.communication import Communication
from megatron_lpc.plan.gpus import GIB
from megatron_lpc.plan.memory import MemoryModel, StageMemory
from megatron_lpc.plan.micro_batch import (
    MicroBatch,
    PairLengths,
    longest_lengths,
    micro_batch,
    micro_batches_per_step,
)
from megatron_lpc.plan.options import PlanOptions, device_type
from megatron_lpc.plan.schedule import PipelineSchedule
from megatron_lpc.plan.speed import Assumptions, Speed, SpeedModel
from megatron_lpc.plan.stages import Stage, distinct_stages


@dataclass(frozen=True)
class StagePlan:
    """A pipeline stage, and what each of its ranks needs."""

    stage: Stage
    memory: StageMemory
    sent: dict[str, float]
    """Bytes that it sends in a step, by process group."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is predicted of a run."""

    config: Config
    options: PlanOptions
    batch: MicroBatch
    """Of the longest pairs, for which memory is planned."""
    mean_batch: MicroBatch
    """Of mean pairs, for which time and communication are planned."""
    schedule: PipelineSchedule
    stages: tuple[StagePlan, ...]
    speed: Speed | None
    """None on a CPU, and in fp32: no peaks are published for them."""

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
    longest, mean = longest_lengths(config), _mean_lengths(config, options)
    batch, mean_batch = (micro_batch(config, lengths, device) for lengths in (longest, mean))
    schedule = PipelineSchedule(
        stages=config.parallel.pipeline_model_parallel_size,
        micro_batches=micro_batches_per_step(config, mean_batch, options.world_size),
        chunks=config.parallel.num_virtual_stages_per_pipeline_rank or 1,
    )
    memory = MemoryModel(config=config, device_type=device, batch=batch, schedule=schedule)
    of_mean = replace(memory, batch=mean_batch)
    communication = Communication(
        config=config, layer=of_mean.layer, head=of_mean.head, batch=mean_batch, schedule=schedule
    )
    stages = distinct_stages(config, options.world_size)
    speed = None
    if device == "cuda" and config.training.bf16:
        assumed = Assumptions(options.efficiency, options.bandwidth_efficiency)
        speed = SpeedModel(config, options.device, assumed, communication).predict(stages)
    return Plan(
        config=config,
        options=options,
        batch=batch,
        mean_batch=mean_batch,
        schedule=schedule,
        stages=tuple(StagePlan(stage, memory.of_stage(stage), communication.of_step(stage)) for stage in stages),
        speed=speed,
    )


def _mean_lengths(config: Config, options: PlanOptions) -> PairLengths:
    """Raises ConfigError where a mean pair is longer than any may be."""
    longest = longest_lengths(config)
    mean = PairLengths(options.prompt_length or longest.prompt, options.response_length or longest.response)
    if mean.prompt + mean.response > config.data.max_length:
        raise ConfigError(
            f"--prompt-length {mean.prompt} and --response-length {mean.response}: exceed "
            f"--max-length {config.data.max_length} together; lower one, or give both"
        )
    return mean
