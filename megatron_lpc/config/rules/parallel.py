"""Rules of the parallel layout, and of how batches divide over it."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.derived import data_parallel_size, model_parallel_size, num_microbatches
from megatron_lpc.config.schema import Config


def processes(config: Config, world_size: int) -> Iterator[str]:
    """The number of processes."""
    parallel = config.parallel
    size = model_parallel_size(config)
    if world_size % size:
        yield (
            f"{world_size} processes: must be a multiple of "
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} "
            f"x --pipeline-model-parallel-size {parallel.pipeline_model_parallel_size} = {size}; "
            "start that many, or lower one of them"
        )


def tensor_parallel(config: Config) -> Iterator[str]:
    """What tensor parallel ranks split."""
    model = config.model
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    split = {
        "--num-attention-heads": model.num_attention_heads,
        "--num-query-groups": model.num_query_groups or model.num_attention_heads,
        "--hidden-size": model.hidden_size,
        "--ffn-hidden-size": model.ffn_hidden_size,
    }
    padding = f"; a model of Hugging Face is imported with --make-query-groups-divisible-by {tensor}"
    remedies = dict.fromkeys(("--num-attention-heads", "--num-query-groups"), padding)
    for flag, size in split.items():
        if size % tensor:
            yield f"--tensor-model-parallel-size {tensor}: must divide {flag} {size}{remedies.get(flag, '')}"
    if parallel.sequence_parallel and tensor == 1:
        yield (
            "--sequence-parallel: splits over tensor parallel ranks and needs --tensor-model-parallel-size above 1; "
            "drop it"
        )


def pipeline_parallel(config: Config) -> Iterator[str]:
    """Layers over pipeline stages."""
    pipeline = config.parallel.pipeline_model_parallel_size
    virtual = config.parallel.num_virtual_stages_per_pipeline_rank
    layers = config.model.num_layers
    if layers % (pipeline * (virtual or 1)):
        chunks = f" x --num-virtual-stages-per-pipeline-rank {virtual}" if virtual else ""
        yield f"--num-layers {layers}: must be a multiple of --pipeline-model-parallel-size {pipeline}{chunks}"
    if virtual and pipeline == 1:
        yield (
            f"--num-virtual-stages-per-pipeline-rank {virtual}: needs --pipeline-model-parallel-size above 1; "
            "leave it unset"
        )


def overlap(config: Config) -> Iterator[str]:
    """Communication overlapped with computation."""
    parallel = config.parallel
    if parallel.overlap_param_gather and not (parallel.use_distributed_optimizer and parallel.overlap_grad_reduce):
        yield (
            "--overlap-param-gather: needs --use-distributed-optimizer and --overlap-grad-reduce; add them, or drop it"
        )


def recompute(config: Config) -> Iterator[str]:
    """Activation recomputation."""
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
        yield (
            f"--recompute-num-layers {layers}: with --recompute-method uniform it must divide the "
            f"{held} layers of a stage"
        )


def batches(config: Config, world_size: int) -> Iterator[str]:
    """The global batch over data parallel ranks and micro-batches."""
    if world_size % model_parallel_size(config):
        return
    if config.data.pack_to is not None:
        yield from _packed_batches(config, world_size)
    else:
        yield from _padded_batches(config, world_size)


def _packed_batches(config: Config, world_size: int) -> Iterator[str]:
    parallel = config.parallel
    is_interleaved = parallel.num_virtual_stages_per_pipeline_rank is not None
    micro_batches = parallel.pipeline_model_parallel_size if is_interleaved else 1
    unit = data_parallel_size(config, world_size) * micro_batches
    if config.training.global_batch_size % unit:
        yield (
            f"--global-batch-size {config.training.global_batch_size}: with --pack-to it must be a multiple of {unit}, "
            "the fewest sequences per step"
        )


def _padded_batches(config: Config, world_size: int) -> Iterator[str]:
    size = config.training.global_batch_size
    micro_batch = config.training.micro_batch_size
    copies = data_parallel_size(config, world_size)
    if size % (micro_batch * copies):
        yield (
            f"--global-batch-size {size}: must be a multiple of --micro-batch-size {micro_batch} "
            f"x {copies} data parallel copies = {micro_batch * copies}"
        )
        return
    pipeline = config.parallel.pipeline_model_parallel_size
    micro_batches = num_microbatches(config, world_size)
    if config.parallel.num_virtual_stages_per_pipeline_rank and micro_batches % pipeline:
        yield (
            "--num-virtual-stages-per-pipeline-rank: interleaving needs micro-batches in multiples of "
            f"--pipeline-model-parallel-size {pipeline}; --global-batch-size {size} gives {micro_batches} to each rank"
        )
