"""Rules between options: what cannot work is refused at the start, with the option, its value, the rule and a way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from megatron_lpc.config.derived import (
    data_parallel_size,
    head_width,
    model_parallel_size,
    num_microbatches,
    padded_vocab_size,
)
from megatron_lpc.config.idle import idle_options
from megatron_lpc.config.options import ConfigError
from megatron_lpc.config.ranges import out_of_range
from megatron_lpc.config.schema import Config


def validate(config: Config, world_size: int, device_type: str | None = None) -> None:
    """Refuse options that contradict each other, the number of processes or the device.

    Args:
        world_size: processes of the run.
        device_type: `cpu` or `cuda`, as the platform chose; `--device` when not given.

    Raises:
        ConfigError: every broken rule, a line each.
    """
    # The rules below divide by these values: ranges come first and alone.
    _refuse(out_of_range(config))
    _refuse(
        [
            *_model(config),
            *_experts(config),
            *_layout(config, world_size),
            *_recompute(config),
            *_batches(config, world_size),
            *_data(config),
            *_objective(config),
            *_start(config),
            *_device(config, device_type or config.parallel.device),
            *idle_options(config),
        ]
    )


def validate_vocab(config: Config, tokenizer_vocab_size: int) -> None:
    """Refuse a vocabulary that the tokenizer exceeds or the layout cannot split.

    Args:
        tokenizer_vocab_size: words of the tokenizer, special ones included.

    Raises:
        ConfigError: every broken rule, a line each.
    """
    model, tensor = config.model, config.parallel.tensor_model_parallel_size
    vocab_size = model.vocab_size or tokenizer_vocab_size
    padded = padded_vocab_size(config, vocab_size)
    problems = []
    if vocab_size < tokenizer_vocab_size:
        problems.append(
            f"--vocab-size {vocab_size}: the tokenizer has {tokenizer_vocab_size} words; raise it, or leave it unset"
        )
    if padded % tensor:
        problems.append(
            f"--tensor-model-parallel-size {tensor}: does not divide the padded vocabulary of {padded} words; "
            f"make --make-vocab-size-divisible-by {model.make_vocab_size_divisible_by} a multiple of {tensor}"
        )
    _refuse(problems)


def _refuse(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise ConfigError("\n".join(lines))


def _model(config: Config) -> Iterator[str]:
    model = config.model
    heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
    if model.kv_channels is None and model.hidden_size % heads:
        yield f"--hidden-size {model.hidden_size}: must be a multiple of --num-attention-heads {heads}, or set --kv-channels"
    if heads % groups:
        yield f"--num-query-groups {groups}: must divide --num-attention-heads {heads}"
    rotated = int(head_width(model) * model.rotary_percent)
    if rotated < 2 or rotated % 2:
        yield (
            f"--rotary-percent {model.rotary_percent}: rotates {rotated} of the {head_width(model)} channels of a head, "
            "and channels are rotated in pairs; choose a share (or --kv-channels) that gives an even number"
        )


def _experts(config: Config) -> Iterator[str]:
    model, parallel = config.model, config.parallel
    if model.num_experts is None:
        return
    if model.moe_router_topk > model.num_experts:
        yield f"--moe-router-topk {model.moe_router_topk}: exceeds --num-experts {model.num_experts}; lower it"
    if model.moe_router_topk == 1 and not model.moe_router_pre_softmax:
        yield "--moe-router-topk 1: a softmax over one chosen expert gives the router no gradient; add --moe-router-pre-softmax"
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        yield (
            f"--num-experts {model.num_experts}: megatron-core trains experts under --tensor-model-parallel-size "
            f"{parallel.tensor_model_parallel_size} with --sequence-parallel alone; add it"
        )
    if model.transformer_impl == "transformer_engine":
        yield f"--num-experts {model.num_experts}: experts are made of the portable layers alone; set --transformer-impl local"


def _layout(config: Config, world_size: int) -> Iterator[str]:
    model, parallel = config.model, config.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    virtual = parallel.num_virtual_stages_per_pipeline_rank
    if world_size % model_parallel_size(config):
        yield (
            f"{world_size} processes: must be a multiple of --tensor-model-parallel-size {tensor} "
            f"x --pipeline-model-parallel-size {pipeline} = {model_parallel_size(config)}; start that many, or lower one of them"
        )
    for flag, size in (
        ("--num-attention-heads", model.num_attention_heads),
        ("--num-query-groups", model.num_query_groups or model.num_attention_heads),
        ("--hidden-size", model.hidden_size),
        ("--ffn-hidden-size", model.ffn_hidden_size),
    ):
        if size % tensor:
            yield f"--tensor-model-parallel-size {tensor}: must divide {flag} {size}"
    if model.num_layers % (pipeline * (virtual or 1)):
        chunks = f" x --num-virtual-stages-per-pipeline-rank {virtual}" if virtual else ""
        yield f"--num-layers {model.num_layers}: must be a multiple of --pipeline-model-parallel-size {pipeline}{chunks}"
    if virtual and pipeline == 1:
        yield f"--num-virtual-stages-per-pipeline-rank {virtual}: needs --pipeline-model-parallel-size above 1; leave it unset"
    if parallel.sequence_parallel and tensor == 1:
        yield "--sequence-parallel: splits over tensor parallel ranks and needs --tensor-model-parallel-size above 1; drop it"
    if parallel.overlap_param_gather and not (parallel.use_distributed_optimizer and parallel.overlap_grad_reduce):
        yield "--overlap-param-gather: needs --use-distributed-optimizer and --overlap-grad-reduce; add them, or drop it"


def _recompute(config: Config) -> Iterator[str]:
    parallel = config.parallel
    layers = parallel.recompute_num_layers
    if parallel.recompute_granularity != "full":
        return
    if parallel.recompute_method is None or layers is None:
        yield "--recompute-granularity full: needs --recompute-method and --recompute-num-layers"
        return
    chunks = parallel.pipeline_model_parallel_size * (parallel.num_virtual_stages_per_pipeline_rank or 1)
    held = config.model.num_layers // chunks
    if layers > held:
        yield f"--recompute-num-layers {layers}: a stage holds only {held} layers"
    elif parallel.recompute_method == "uniform" and held % layers:
        # megatron-core counts its blocks past the end of the stage otherwise.
        yield f"--recompute-num-layers {layers}: with --recompute-method uniform it must divide the {held} layers of a stage"


def _batches(config: Config, world_size: int) -> Iterator[str]:
    training, pipeline = config.training, config.parallel.pipeline_model_parallel_size
    if world_size % model_parallel_size(config):
        return
    copies = data_parallel_size(config, world_size)
    if config.data.pack_to is not None:
        unit = copies * (pipeline if config.parallel.num_virtual_stages_per_pipeline_rank else 1)
        if training.global_batch_size % unit:
            yield f"--global-batch-size {training.global_batch_size}: with --pack-to it must be a multiple of {unit}, the least rows a step"
        return
    if training.global_batch_size % (training.micro_batch_size * copies):
        yield (
            f"--global-batch-size {training.global_batch_size}: must be a multiple of --micro-batch-size {training.micro_batch_size} "
            f"x {copies} data parallel copies = {training.micro_batch_size * copies}"
        )
        return
    batches = num_microbatches(config, world_size)
    if config.parallel.num_virtual_stages_per_pipeline_rank and batches % pipeline:
        yield (
            f"--num-virtual-stages-per-pipeline-rank: interleaving needs micro-batches in multiples of "
            f"--pipeline-model-parallel-size {pipeline}; --global-batch-size {training.global_batch_size} gives {batches} to each rank"
        )


def _data(config: Config) -> Iterator[str]:
    data, positions, parallel = config.data, config.model.max_position_embeddings, config.parallel
    if data.pack_to is not None and parallel.sequence_parallel and data.pack_to % parallel.tensor_model_parallel_size:
        yield (
            f"--pack-to {data.pack_to}: --sequence-parallel splits rows over --tensor-model-parallel-size "
            f"{parallel.tensor_model_parallel_size}; make it a multiple of that"
        )
    if data.streaming and config.training.train_iters is None:
        yield "--streaming: the length of a stream is not known; set --train-iters"
    if data.streaming and config.loss.reference == "precomputed":
        yield "--streaming: the rows of a stream have no place under which a cache could keep log-probs; set --reference online"
    if data.share_prompt and config.model.transformer_impl == "transformer_engine":
        yield (
            "--share-prompt: TransformerEngine's attention takes no such mask; set --transformer-impl local, "
            "or drop it and use --pack-to, which packs separate rows"
        )
    if not data.train_data:
        yield "--train-data: is empty; name at least one file"
    if not data.tokenizer_model:
        yield "--tokenizer-model: is empty; name a tokenizer's folder or file"
    if data.max_length > positions:
        yield f"--max-length {data.max_length}: exceeds --max-position-embeddings {positions}; lower the one, or raise the other"
    if data.max_prompt_length is not None and data.max_prompt_length >= data.max_length:
        yield f"--max-prompt-length {data.max_prompt_length}: leaves no room for a response within --max-length {data.max_length}"


def _objective(config: Config) -> Iterator[str]:
    loss, training = config.loss, config.training
    if loss.logps_algorithm == "frozen":
        yield "--logps-algorithm frozen: makes no gradient of the LM head, and training trains it; set auto, pairwise or recompute"
    if loss.loss_type == "sft" and config.latent.latent_mode != "none":
        yield f"--latent-mode {config.latent.latent_mode}: --loss-type sft has no pair to compare; set --latent-mode none"
    if config.latent.usage_entropy_weight and config.data.pack_to is not None:
        yield (
            f"--usage-entropy-weight {config.latent.usage_entropy_weight}: is of the pairs of a micro-batch, which --pack-to chooses by "
            "their length; drop one of the two"
        )
    if loss.loss_type in ("dpo", "ipo") and loss.reference == "precomputed" and loss.reference_cache is None:
        yield "--reference precomputed: needs --reference-cache; write it with `python -m megatron_lpc.precompute_reference`"
    if training.lr_decay_style != "constant":
        for flag, rate in (("--lr", training.lr), ("--latent-lr", training.latent_lr)):
            if rate is not None and training.min_lr > rate:
                yield f"--min-lr {training.min_lr}: exceeds {flag} {rate}; a decay ends below its start"


def _start(config: Config) -> Iterator[str]:
    checkpoint = config.checkpoint
    if checkpoint.load == "auto" and checkpoint.save is None:
        yield "--load auto: resumes from --save, which is unset; set it"


def _device(config: Config, device: str) -> Iterator[str]:
    if config.model.transformer_impl == "transformer_engine" and device == "cpu":
        yield "--transformer-impl transformer_engine: TransformerEngine runs on GPUs only; set --transformer-impl local"
    several = config.data.share_prompt or config.data.pack_to is not None
    if several and config.model.attention_dropout and config.model.transformer_impl == "local" and device == "cuda":
        yield (
            f"--attention-dropout {config.model.attention_dropout}: FlexAttention, which --share-prompt and --pack-to need on a GPU, "
            "has no dropout; set it to 0"
        )
