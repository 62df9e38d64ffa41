"""What ranks send each other in a step, by process group, in bytes.

A ring of n ranks sends (n - 1) / n of a tensor from each rank in an all-gather or a reduce-scatter, and twice that in
an all-reduce. What megatron-core does where: Korthikanti et al. 2022 (arXiv 2205.05198, section 4.2) for tensor and
sequence parallelism, Narayanan et al. 2021 (arXiv 2104.04473, section 3) for pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config import Config
from megatron_lpc.plan.activations import LayerSizes, boundary_bytes
from megatron_lpc.plan.gpus import Gpu
from megatron_lpc.plan.lm_head import LMHeadSizes
from megatron_lpc.plan.memory import has_reference_model
from megatron_lpc.plan.micro_batch import MicroBatch
from megatron_lpc.plan.schedule import PipelineSchedule
from megatron_lpc.plan.stages import Stage

_FP32 = 4
_STATISTICS = 3
"""Numbers per loss token and latent that `pair_logps` gathers."""


def ring(ranks: int) -> float:
    """Share of a tensor that each rank sends in an all-gather or a reduce-scatter."""
    return (ranks - 1) / ranks


@dataclass(frozen=True, kw_only=True)
class Communication:
    """What the parallel layout and a micro-batch make ranks send."""

    config: Config
    layer: LayerSizes
    head: LMHeadSizes
    batch: MicroBatch
    schedule: PipelineSchedule

    @property
    def tensor(self) -> int:
        return self.config.parallel.tensor_model_parallel_size

    def tensor_forward(self, layers: float) -> float:
        """Bytes that a rank sends over TP in the forward pass of layers, for a micro-batch.

        Two all-reduces of the hidden states, or two pairs of all-gather and reduce-scatter: as many bytes. Experts
        exchange each token as often as it has experts.
        """
        return layers * 2 * ring(self.tensor) * self._hidden * (1 + self.layer.topk)

    def tensor_backward(self, layers: float) -> float:
        """The same of the backward pass. Sequence parallelism gathers the inputs of matrices again, not of experts."""
        if self.config.training.freeze_backbone:
            return 0.0
        again = 0
        if self.layer.sequence_shards > 1:
            again = 1 if self.layer.experts else 2
        return self.tensor_forward(layers) + layers * again * ring(self.tensor) * self._hidden

    def tensor_ends(self, stage: Stage, *, backward: bool = True) -> float:
        """Of the embedding and of the LM head."""
        total = 0.0
        shards = self.layer.sequence_shards
        if stage.is_first:  # An all-reduce, or a reduce-scatter.
            total += (1 if shards > 1 else 2) * ring(self.tensor) * self._hidden
        if stage.is_last:
            total += ring(self.tensor) * self._hidden if shards > 1 else 0.0
            latents = max(1, self.head.latents)
            total += (self.tensor - 1) * _STATISTICS * _FP32 * latents * self.head.loss_tokens
            if backward and not self.config.training.freeze_backbone:
                per_token = self.head.hidden_size * self.head.itemsize
                total += 2 * ring(self.tensor) * self.head.loss_tokens * per_token
        return total

    def tensor_of_micro_batch(self, stage: Stage) -> float:
        """Bytes that a rank of a stage sends over TP for a micro-batch, forward and backward."""
        parallel = self.config.parallel
        forward = self.tensor_forward(stage.layers)
        repeats = 0.0
        if parallel.recompute_granularity == "full" and not self.config.training.freeze_backbone:
            count = parallel.recompute_num_layers or 0
            chunk = stage.layers // self.schedule.chunks
            repeats = 1.0 if parallel.recompute_method == "uniform" else min(count, chunk) / chunk
        backward = self.tensor_backward(stage.layers)
        return (1 + repeats) * forward + backward + self.tensor_ends(stage)

    def tensor_of_reference(self, stage: Stage) -> float:
        """The same of the reference pass; 0 without one."""
        if not has_reference_model(self.config):
            return 0.0
        return self.tensor_forward(stage.layers) + self.tensor_ends(stage, backward=False)

    @property
    def pipeline_passes(self) -> int:
        """Hidden states that a rank between two others sends for a micro-batch: onwards, and their gradient back."""
        if self.schedule.stages == 1:
            return 0
        backward = 0 if self.config.training.freeze_backbone else 1
        return self.schedule.chunks * (1 + backward)

    def pipeline_of_micro_batch(self) -> float:
        """Bytes that a rank sends over PP for a micro-batch, without the reference's."""
        return float(self.pipeline_passes * boundary_bytes(self.layer, self.batch))

    def pipeline_of_reference(self) -> float:
        if self.schedule.stages == 1 or not has_reference_model(self.config):
            return 0.0
        return float(self.schedule.chunks * boundary_bytes(self.layer, self.batch))

    def gradients(self, stage: Stage) -> float:
        """Bytes that a rank sends over DP to sum gradients: a reduce-scatter, or an all-reduce."""
        times = 1 if self.config.parallel.use_distributed_optimizer else 2
        return times * ring(stage.copies) * stage.gradient_bytes

    def parameters(self, stage: Stage) -> float:
        """Bytes that a rank sends over DP to gather updated parameters, with the distributed optimizer."""
        if not self.config.parallel.use_distributed_optimizer:
            return 0.0
        return ring(stage.copies) * stage.trained_parameters * self.head.itemsize

    def of_step(self, stage: Stage) -> dict[str, float]:
        """Bytes that a rank of a stage sends in a step, by process group."""
        count = self.schedule.micro_batches
        return {
            "TP": count * (self.tensor_of_micro_batch(stage) + self.tensor_of_reference(stage)),
            "PP": count * (self.pipeline_of_micro_batch() + self.pipeline_of_reference()),
            "DP": self.gradients(stage) + self.parameters(stage),
            # This project has neither context nor expert parallelism.
            "CP": 0.0,
            "EP": 0.0,
        }

    @property
    def _hidden(self) -> float:
        """Bytes of whole hidden states between layers."""
        return float(self.batch.tokens * self.layer.hidden_size * self.layer.itemsize)


@dataclass(frozen=True, kw_only=True)
class Links:
    """Bandwidth of a rank in each group, bytes per second. Ranks are numbered TP first, then DP, then PP."""

    tensor: float
    data: float
    pipeline: float


def links(gpu: Gpu, tensor: int, copies: int, stages: int) -> Links:
    """The links that the groups of a parallel layout use.

    A group within the GPUs that NVLink connects uses it. Another one uses the network, in which a rank has the adapters
    of all ranks of the group in its own node: NCCL sends by a ring through each adapter.
    """
    nvlink, network = 1e9 * gpu.nvlink_gb_per_second, 1e9 * gpu.network_gb_per_second
    domain = gpu.nvlink_domain

    def spanning(stride: int, ranks: int) -> float:
        if stride * ranks <= domain:
            return nvlink
        together = max(1, min(ranks, domain // stride))
        return min(nvlink, network * together)

    whole = tensor * copies * stages
    return Links(
        tensor=spanning(1, tensor),
        data=spanning(tensor, copies),
        # Not collective: each exchange has the two adapters of its ranks.
        pipeline=nvlink if whole <= domain else network,
    )
