"""Memory of the ranks of a pipeline stage, in bytes, and when it is highest."""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_lpc.config import Config
from megatron_lpc.losses import uses_reference
from megatron_lpc.plan.activations import (
    LayerSizes,
    backward_workspace,
    boundary_bytes,
    chunk_activations,
    layer_sizes,
)
from megatron_lpc.plan.lm_head import (
    LMHeadSizes,
    embedding_workspace,
    gradient_workspace,
    lm_head_sizes,
    reference_workspace,
    scoring_workspace,
)
from megatron_lpc.plan.micro_batch import MicroBatch
from megatron_lpc.plan.schedule import PipelineSchedule
from megatron_lpc.plan.stages import Stage

_FP32 = 4
_UNFUSED_ADAM_TENSORS = 3
"""fp32 temporaries of torch's AdamW on a CPU, of the size of the parameter that it updates."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes of one rank of a stage."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    """Weights of an online reference that stay on the device."""
    activations: int
    """Of all micro-batches that are in flight."""
    workspace: int
    """The most that a pass holds for a moment beside its activations: the LM head with its chunk of logits, layers that
    are computed again, gradients on their way into the buffers."""
    lm_head: int
    """What the LM head contributes to that, on the last stage."""
    reference_pass: int
    """What a reference pass holds for a moment, its weights included where they wait on the host."""
    update: int
    """What the optimizer holds for a moment."""
    save: int
    """What saving a checkpoint holds for a moment on the device."""
    host: int
    """On the host, where that is not the device: an offloaded reference, and what an asynchronous save copies."""

    @property
    def resident(self) -> int:
        """What is there from the first step to the last."""
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def phases(self) -> dict[str, int]:
        """The highest memory of each phase of a step."""
        return {
            "passes": self.resident + self.activations + self.workspace,
            "reference pass": self.resident + self.reference_pass,
            "update": self.resident + self.update,
            "save": self.resident + self.save,
        }

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    def as_dict(self) -> dict[str, int]:
        """Everything, for JSON."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return parts | {"resident": self.resident, "peak": self.peak}


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """What the stages of one run have in common."""

    config: Config
    device_type: str
    """`cuda` or `cpu`."""
    batch: MicroBatch
    schedule: PipelineSchedule

    @property
    def layer(self) -> LayerSizes:
        return layer_sizes(self.config, self.device_type)

    @property
    def head(self) -> LMHeadSizes:
        return lm_head_sizes(self.config, self.batch, self.device_type)

    def of_stage(self, stage: Stage) -> StageMemory:
        """Memory of the ranks of a stage; of several that are alike, of the first, which holds most activations."""
        with_reference = has_reference_model(self.config)
        offloads = with_reference and self.config.loss.reference_offload
        kept = self._layers_are_kept()
        weights = stage.weight_bytes if kept else self._weights_without_layers(stage)
        forward = self._forward_workspace(stage) if with_reference else 0
        activations, workspace, lm_head = self._passes(stage)
        is_async = self.config.checkpoint.async_save and self.config.checkpoint.save is not None
        copies = self._saved_bytes(stage) if is_async else 0
        on_gpu = self.device_type == "cuda"
        of_reference = stage.weight_bytes - stage.latent_parameters * self.layer.itemsize
        return StageMemory(
            weights=weights,
            gradients=stage.gradient_bytes,
            optimizer=stage.optimizer_bytes,
            reference=of_reference if with_reference and not offloads else 0,
            activations=activations,
            workspace=workspace,
            lm_head=lm_head,
            reference_pass=forward + (of_reference if offloads else 0),
            update=0 if on_gpu else _UNFUSED_ADAM_TENSORS * _FP32 * stage.largest_optimizer_tensor,
            save=0 if on_gpu else copies,
            host=(of_reference if offloads else 0) + copies if on_gpu else 0,
        )

    def _passes(self, stage: Stage) -> tuple[int, int, int]:
        """Activations in flight, workspace, and the part of the LM head in that."""
        chunks = self.schedule.chunks
        of_chunk = chunk_activations(self.config, self.layer, self.batch, stage.layers // chunks)
        in_flight = self.schedule.chunks_in_flight(stage.first_rank)
        stored = in_flight * of_chunk.stored
        frozen = self.config.training.freeze_backbone
        moments = [self._forward_workspace(stage)] if frozen else []
        if not frozen:
            layers = of_chunk.rebuilt + backward_workspace(self.layer, self.batch) + stage.largest_weight_bytes
            moments.append(layers)
        lm_head = 0
        if stage.is_last:
            lm_head = max(scoring_workspace(self.head), gradient_workspace(self.head, self.batch.tokens))
            moments.append(lm_head)
            stored += 0 if frozen else self._final_norm_bytes()
        if stage.is_first and not frozen:
            # When the gradient of the embedding is made, its micro-batch has no other activations left.
            moments.append(embedding_workspace(self.head) - of_chunk.stored)
        return stored, max(moments), lm_head

    def _final_norm_bytes(self) -> int:
        """Input and output of the last norm, and its normalised input where it is not fused."""
        copies = 2 if self.layer.fused_norms else 3
        return copies * boundary_bytes(self.layer, self.batch)

    def _forward_workspace(self, stage: Stage) -> int:
        """A pass without gradient: a layer's input, and the projection of its MLP with its product."""
        sizes, tokens = self.layer, self.batch.tokens
        of_mlp = 4 * sizes.topk * tokens * sizes.ffn_size * sizes.itemsize
        of_layer = 2 * boundary_bytes(sizes, self.batch) + tokens * sizes.hidden_size * sizes.itemsize + of_mlp
        if not stage.is_last:
            return of_layer
        return max(of_layer, reference_workspace(self.head, self.device_type == "cuda"))

    def _layers_are_kept(self) -> bool:
        """Whether a GPU holds the layers: not where hidden states are cached."""
        return self.config.training.cache_hidden_states is None or self.device_type == "cpu"

    def _weights_without_layers(self, stage: Stage) -> int:
        head = self.head
        return (head.vocab * head.hidden_size + stage.latent_parameters) * head.itemsize

    def _saved_bytes(self, stage: Stage) -> int:
        """What one rank writes: its share of the weights, which the data parallel ranks hold alike, and its optimizer
        state; without the distributed optimizer that is shared out too.
        """
        copies = stage.copies
        shares = stage.weight_bytes // copies
        if self.config.parallel.use_distributed_optimizer:
            return shares + stage.optimizer_bytes
        return shares + stage.optimizer_bytes // copies


def has_reference_model(config: Config) -> bool:
    """Whether a second model runs beside the policy."""
    return uses_reference(config.loss) and config.loss.reference == "online" and not config.training.freeze_backbone
