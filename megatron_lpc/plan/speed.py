"""Time of a step on a named GPU, from published peaks and the shares of them that are assumed to be reached."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config import Config
from megatron_lpc.plan.communication import Communication, Links, links
from megatron_lpc.plan.compute import Flops, computed_flops, demanded_flops
from megatron_lpc.plan.gpus import Gpu
from megatron_lpc.plan.stages import Stage
from megatron_lpc.training.mfu import mfu

_BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True)
class Assumptions:
    """Shares of published peaks. They are not measured here."""

    efficiency: float
    """Of the peak FLOP/s, while a rank computes."""
    bandwidth_efficiency: float
    """Of the bandwidth of HBM, NVLink and network."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A step, in seconds, and what follows. The parts are those of the slowest stage, and add up to the step."""

    reference: float
    """The reference pass of all micro-batches."""
    compute: float
    """Products of all micro-batches."""
    tensor_parallel: float
    """Its collectives, of which none is taken to be hidden."""
    pipeline_parallel: float
    """Exchanges of hidden states, of which none is taken to be hidden."""
    bubble: float
    """Waiting for other stages."""
    data_parallel: float
    """Its collectives that do not overlap with passes."""
    update: float
    """The optimizer, by the bytes that it reads and writes."""
    pairs: int
    """Per step."""
    flops: float
    """Demanded per step, over all ranks."""
    devices: int
    peak_tflops: float

    @property
    def seconds(self) -> float:
        passes = self.compute + self.tensor_parallel + self.pipeline_parallel + self.bubble
        return self.reference + passes + self.data_parallel + self.update

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.seconds

    @property
    def mfu(self) -> float:
        return mfu(self.flops, self.seconds, self.devices, self.peak_tflops)


@dataclass(frozen=True)
class SpeedModel:
    """What a run's time depends on."""

    config: Config
    gpu: Gpu
    assumed: Assumptions
    communication: Communication

    def predict(self, stages: list[Stage]) -> Speed:
        """Time of a step.

        Args:
            stages: as `distinct_stages` gives them.
        """
        batch, schedule = self.communication.batch, self.communication.schedule
        flops = computed_flops(self.config, batch, self.communication.head)
        every = [(stage, self._pass(stage, flops)) for stage in stages for _ in range(stage.stages)]
        slowest, (compute, tensor, pipeline) = max(every, key=lambda entry: sum(entry[1]))
        of_pass = sum((compute, tensor, pipeline))
        whole = schedule.seconds([sum(parts) for _, parts in every])
        count = schedule.micro_batches
        parallel = self.config.parallel
        peak = self.config.logging.peak_tflops or self.gpu.peak_tflops
        return Speed(
            reference=schedule.seconds([self._reference(stage, flops) for stage, _ in every]),
            compute=count * compute,
            tensor_parallel=count * tensor,
            pipeline_parallel=count * pipeline,
            bubble=whole - count * of_pass,
            data_parallel=max(self._data_parallel(stage, sum(parts)) for stage, parts in every),
            update=max(self._update(stage) for stage, _ in every),
            pairs=self.config.training.global_batch_size,
            flops=demanded_flops(self.config, batch),
            devices=parallel.tensor_model_parallel_size * schedule.stages * slowest.copies,
            peak_tflops=peak,
        )

    def _pass(self, stage: Stage, flops: Flops) -> tuple[float, float, float]:
        """Seconds of a micro-batch in a stage, forward and backward: products, TP, PP."""
        compute = flops.of_rank(stage, self.config.model.num_layers, self._tensor) / self._flops_per_second
        bandwidth = self._links(stage)
        tensor = self.communication.tensor_of_micro_batch(stage) / bandwidth.tensor
        pipeline = self.communication.pipeline_of_micro_batch() / bandwidth.pipeline
        return compute, tensor / self._reached, pipeline / self._reached

    def _reference(self, stage: Stage, flops: Flops) -> float:
        compute = flops.of_rank_reference(stage, self.config.model.num_layers, self._tensor) / self._flops_per_second
        bandwidth = self._links(stage)
        tensor = self.communication.tensor_of_reference(stage) / bandwidth.tensor
        pipeline = self.communication.pipeline_of_reference() / bandwidth.pipeline
        return compute + (tensor + pipeline) / self._reached

    def _data_parallel(self, stage: Stage, of_pass: float) -> float:
        """Seconds beyond the last backward pass, under which gradients are summed, and beyond the first forward pass,
        under which parameters are gathered; all of them where the options do not ask for overlap.
        """
        parallel, bandwidth = self.config.parallel, self._links(stage).data * self._reached
        gradients = self.communication.gradients(stage) / bandwidth
        parameters = self.communication.parameters(stage) / bandwidth
        hides_gradients = _BACKWARD_SHARE * of_pass if parallel.overlap_grad_reduce else 0.0
        hides_parameters = (1 - _BACKWARD_SHARE) * of_pass if parallel.overlap_param_gather else 0.0
        return max(0.0, gradients - hides_gradients) + max(0.0, parameters - hides_parameters)

    def _update(self, stage: Stage) -> float:
        """Adam reads and writes its state, reads gradients and writes weights: its share of them."""
        shares = stage.copies if self.config.parallel.use_distributed_optimizer else 1
        gradients_and_weights = (stage.gradient_bytes + stage.weight_bytes) / shares
        moved = 2 * stage.optimizer_bytes + gradients_and_weights
        return moved / (1e9 * self.gpu.memory_gb_per_second * self._reached)

    def _links(self, stage: Stage) -> Links:
        return links(self.gpu, self._tensor, stage.copies, self.communication.schedule.stages)

    @property
    def _tensor(self) -> int:
        return self.config.parallel.tensor_model_parallel_size

    @property
    def _flops_per_second(self) -> float:
        peak = self.config.logging.peak_tflops or self.gpu.peak_tflops
        return 1e12 * peak * self.assumed.efficiency

    @property
    def _reached(self) -> float:
        return self.assumed.bandwidth_efficiency
