"""What the ranks of a run hold, counted on their models, gradient buffers and optimizers, built on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn

from megatron_lpc.config import Config, with_options
from megatron_lpc.model import unwrapped
from megatron_lpc.platform.meta import pretended_rank
from megatron_lpc.platform.process_groups import destroy_process_groups
from megatron_lpc.training.optimizer_state import stateful_parts
from megatron_lpc.training.policy import TrainablePolicy, build_policy, make_trainable
from megatron_lpc.training.setup import RunContext, split_world

_FP32_BYTES = 4
_MOMENTS = 2
"""Of Adam, in fp32."""
_EMBEDDING, _LM_HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
_LAYERS, _HEAD = "decoder.layers.", "latent_head."
_WITHOUT_EFFECT: dict[str, Any] = {
    # TransformerEngine's layers have the same weights, and need a GPU.
    "transformer_impl": "local",
    "fp8_format": None,
    "flex_attention_backend": "auto",
    "deterministic": False,
    # These change what is computed with the weights, and when.
    "recompute_granularity": None,
    "recompute_method": None,
    "recompute_num_layers": None,
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "pack_to": None,
    "share_prompt": False,
    "reference": "online",
    "reference_offload": False,
}
"""Options that do not decide what a rank holds for its policy, at the value at which it is built."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What each rank of one pipeline stage holds; all ranks of a stage hold as much."""

    first_rank: int
    """Pipeline rank of the stage; of the first one, where several stages are alike."""
    stages: int
    """Stages that are alike."""
    copies: int
    """Data parallel ranks, which hold the same weights."""
    layers: int
    """Transformer layers, over all model chunks of the rank."""
    is_first: bool
    is_last: bool
    parameters: int
    """On the rank, the latent head and the padding of the vocabulary included."""
    trained_parameters: int
    """Those that require gradients."""
    model_parameters: int
    """Of the backbone, in all tensor parallel ranks of one such stage together, each counted once: no copy of a
    replicated or tied weight, no padding of the vocabulary."""
    latent_parameters: int
    """Of the LPC head, which every tensor parallel rank of the last stage holds."""
    weight_bytes: int
    gradient_bytes: int
    """fp32 gradient buffers."""
    optimizer_bytes: int
    """Moments, and the fp32 main parameters where the model is bf16."""
    largest_weight_bytes: int
    """Of the largest single weight of a layer that is trained; 0 where none is."""
    largest_optimizer_tensor: int
    """Elements of the largest single tensor that the optimizer updates on this rank."""


def distinct_stages(config: Config, world_size: int) -> list[Stage]:
    """The stages of a run that differ: the first, one for all between, and the last.

    All stages have as many layers, and all layers are alike: `validate` sees to that. The rank that is built of a stage
    is the first one of its tensor and data parallel groups; what the others hold has the same shapes.

    Args:
        config: validated for `world_size`; `vocab_size` and `bf16` are set.
    """
    last = config.parallel.pipeline_model_parallel_size - 1
    alike = {0: 1, last: 1}
    if last > 1:
        alike[1] = last - 1
    return [build_stage(config, world_size, rank, alike[rank]) for rank in sorted(alike)]


def build_stage(config: Config, world_size: int, pipeline_rank: int, stages: int = 1) -> Stage:
    """Build what one rank of a stage trains, on the meta device, and count it.

    Args:
        config, world_size: as `distinct_stages` takes them.
        stages: how many stages are like this one.
    """
    built = with_options(config, **_WITHOUT_EFFECT)
    return replace(_count(_Rank(repr(built), world_size, pipeline_rank, built)), stages=stages)


@dataclass(frozen=True)
class _Rank:
    """A rank that was counted is known again by its options."""

    options: str
    world_size: int
    pipeline_rank: int
    config: Config = field(compare=False)


@cache
def _count(rank: _Rank) -> Stage:
    config = rank.config
    ranks_of_stage = rank.world_size // config.parallel.pipeline_model_parallel_size
    with pretended_rank(rank.pipeline_rank * ranks_of_stage, rank.world_size) as platform:
        context = split_world(config, platform)
        try:
            # As a run that resumes is built: nothing is drawn, and nothing is loaded.
            chunks = build_policy(context, resumes=True)
            return _stage(context, rank.pipeline_rank, make_trainable(context, chunks, train_iters=1))
        finally:
            destroy_process_groups()


def _stage(context: RunContext, pipeline_rank: int, policy: TrainablePolicy) -> Stage:
    config = context.config
    models = [unwrapped(chunk) for chunk in policy.chunks]
    named = [item for model in models for item in model.named_parameters()]
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    latent = sum(parameter.numel() for name, parameter in named if name.startswith(_HEAD))
    optimized = _optimized(policy)
    main_bytes = _FP32_BYTES if config.training.bf16 else 0
    return Stage(
        first_rank=pipeline_rank,
        stages=1,
        copies=context.groups.dp_size,
        layers=sum(len(model.decoder.layers) for model in models),
        is_first=models[0].pre_process,
        is_last=models[-1].post_process,
        parameters=sum(parameter.numel() for _, parameter in named),
        trained_parameters=sum(parameter.numel() for _, parameter in trained),
        model_parameters=sum(
            _whole_size(config, model, *item) for model in models for item in model.named_parameters()
        ),
        latent_parameters=latent,
        weight_bytes=sum(parameter.nbytes for _, parameter in named),
        gradient_bytes=sum(buffer.grad_data.nbytes for chunk in policy.chunks for buffer in _buffers(chunk)),
        optimizer_bytes=(main_bytes + _MOMENTS * _FP32_BYTES) * sum(tensor.numel() for tensor in optimized),
        largest_weight_bytes=max((item.nbytes for name, item in trained if name.startswith(_LAYERS)), default=0),
        largest_optimizer_tensor=max((tensor.numel() for tensor in optimized), default=0),
    )


def _whole_size(config: Config, model: Any, name: str, parameter: nn.Parameter) -> int:
    """What one rank's parameter counts for in the backbone as a whole."""
    is_tied_copy = name == _LM_HEAD and model.share_embeddings_and_output_weights
    if name.startswith(_HEAD) or is_tied_copy:
        return 0
    shards = config.parallel.tensor_model_parallel_size if is_shard(parameter) else 1
    if name in (_LM_HEAD, _EMBEDDING):
        assert config.model.vocab_size is not None
        return config.model.vocab_size * parameter.size(1)
    return shards * parameter.numel()


def is_shard(parameter: nn.Parameter) -> bool:
    """Whether each tensor parallel rank holds another part of the parameter."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def _buffers(chunk: DistributedDataParallel) -> list[Any]:
    return [*chunk.buffers, *chunk.expert_parallel_buffers]


def _optimized(policy: TrainablePolicy) -> list[Tensor]:
    """The tensors that this rank's optimizer updates: its shares, with the distributed one."""
    groups = [group for part in stateful_parts(policy.optimizer) for group in part.optimizer.param_groups]
    return [tensor for group in groups for tensor in group["params"]]
