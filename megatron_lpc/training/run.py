"""Build what a run needs, in the order in which things depend on each other: tokenizer, data, model, reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn

from megatron_lpc.config import Config, ConfigError, validate_vocab
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.loader import PairLoader, StreamLoader, pairs_in_flight
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.stream import PairStream
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer
from megatron_lpc.losses import uses_reference
from megatron_lpc.model import build_model
from megatron_lpc.platform import Platform
from megatron_lpc.training.checkpoint import RunState
from megatron_lpc.training.checkpoint_folder import holds_checkpoint, resolve_checkpoint
from megatron_lpc.training.checkpoint_tensors import load_weights
from megatron_lpc.training.collectives import from_data_parallel_ranks
from megatron_lpc.training.mfu import attention_cost
from megatron_lpc.training.reference import CachedReference, NoReference, OnlineReference, Reference
from megatron_lpc.training.reference_cache import load_reference_cache, weights_fingerprint


def open_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer; `config.model.vocab_size` becomes its size where it is unset.

    Raises:
        ConfigError: it cannot be loaded, has more words than the model, or its padded vocabulary does not split over the ranks.
    """
    with _input_errors():
        tokenizer = load_tokenizer(config.data)
    if config.model.vocab_size is None:
        config.model.vocab_size = tokenizer.vocab_size
    validate_vocab(config, tokenizer.vocab_size)
    return tokenizer


def open_data(config: Config, tokenizer: Tokenizer, sources: Sequence[str], name: str) -> PairDataset:
    """A tokenized data set. Rank 0 builds what is not yet cached.

    Collectives: one broadcast over all ranks, at which the others wait.

    Raises:
        ConfigError: a source cannot be read, a row cannot be used, or the tokenizer lacks the chat template that it needs.
    """
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            with _input_errors():
                build_dataset(config.data, tokenizer, sources, name)
        except ConfigError as error:
            problem = [str(error)]
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise ConfigError(problem[0])
    return build_dataset(config.data, tokenizer, sources, name, is_builder=False)


@contextmanager
def _input_errors() -> Iterator[None]:
    """Tokenizers and data files report what the user can mend as these three; BadRow is a ValueError."""
    try:
        yield
    except (ValueError, LookupError, OSError) as error:
        raise ConfigError(str(error)) from error


def micro_batch_planner(config: Config, tokenizer: Tokenizer) -> MicroBatchPlanner:
    """How this run lays out pairs."""
    data, parallel = config.data, config.parallel
    return MicroBatchPlanner(
        pad_id=tokenizer.pad_id,
        micro_batch_size=config.training.micro_batch_size,
        pad_to_multiple=parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1,
        micro_batch_multiple=parallel.pipeline_model_parallel_size
        if parallel.num_virtual_stages_per_pipeline_rank
        else 1,
        share_prompt=data.share_prompt,
        pack_to=data.pack_to,
        attention_cost=attention_cost(config),
    )


def make_loader(config: Config, tokenizer: Tokenizer, dataset: PairDataset) -> PairLoader:
    """This rank's share of a data set. Ranks of one model copy load the same rows.

    Raises:
        ConfigError: a pair does not fit `pack_to`.
    """
    planner = micro_batch_planner(config, tokenizer)
    with _input_errors():
        planner.check_fit(dataset.lengths)
    return PairLoader(
        dataset=dataset,
        planner=planner,
        global_batch_size=config.training.global_batch_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
    )


def training_steps(
    config: Config, loader: PairLoader | StreamLoader, consumed_samples: int
) -> Iterator[list[PairBatch]]:
    """The micro-batches of one step after the other.

    Raises:
        ConfigError: a streamed row cannot be used.
    """
    with _input_errors():
        yield from loader.training(config.training.seed, consumed_samples)


def stream_positions(loader: PairLoader | StreamLoader, consumed_samples: int) -> list[dict[str, Any]]:
    """What a checkpoint must hold of each data parallel rank's reader: nothing where the data are not streamed.

    Collective, where they are: an all-gather of objects over the data parallel group.
    """
    return from_data_parallel_ranks(loader.position(consumed_samples)) if isinstance(loader, StreamLoader) else []


def make_stream(config: Config, tokenizer: Tokenizer, state: RunState) -> StreamLoader:
    """This rank's share of streamed training data, from where the run was saved.

    Raises:
        ConfigError: the run that is resumed did not stream its data, or was of another number of data parallel ranks.
    """
    positions = state.positions
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    batch = config.training.global_batch_size
    if state.consumed_samples and not positions:
        raise ConfigError("--streaming: the checkpoint is of a run that did not stream its data; resume without it")
    if positions and len(positions) != size:
        raise ConfigError(
            f"--streaming: the checkpoint is of {len(positions)} data parallel ranks, each with its share of the data, and this run "
            f"has {size}; resume with as many"
        )
    stream = PairStream(
        config.data,
        tokenizer,
        dp_rank=rank,
        dp_size=size,
        max_ahead=pairs_in_flight(batch, size),
        records_bad_rows=parallel_state.get_model_parallel_group().rank() == 0,
    )
    return StreamLoader(
        stream=stream,
        planner=micro_batch_planner(config, tokenizer),
        global_batch_size=batch,
        dp_rank=rank,
        dp_size=size,
        start=positions[rank] if positions else None,
    )


def total_steps(config: Config, rows: int | None) -> int:
    """Optimizer steps of the whole run on `rows` pairs; None for a stream, whose number is set."""
    training = config.training
    if training.train_iters is not None:
        return training.train_iters
    assert rows is not None
    return max(1, math.ceil(training.num_train_epochs * rows / training.global_batch_size))


def starting_point(config: Config) -> Path | None:
    """The checkpoint to resume from: what `load` names; with `auto` the newest under `save`, if there is one yet."""
    options = config.checkpoint
    if options.load == "auto":
        assert options.save is not None
        return resolve_checkpoint(options.save) if holds_checkpoint(options.save) else None
    return resolve_checkpoint(options.load) if options.load else None


def start_model(config: Config, platform: Platform) -> list[nn.Module]:
    """The policy as training starts from it: fresh, or with the weights of `pretrained_checkpoint`."""
    chunks = build_model(config, platform, config.latent)
    if config.checkpoint.pretrained_checkpoint:
        start = resolve_checkpoint(config.checkpoint.pretrained_checkpoint)
        load_weights(chunks, start, latent_head=config.latent.latent_mode != "none", config=config)
    return chunks


def make_references(
    config: Config, platform: Platform, policy: list[nn.Module], datasets: Sequence[tuple[str, PairDataset | None]]
) -> list[Reference]:
    """Where the objective's reference log-probs of each data set come from.

    The reference is `reference_load`, or else what the policy started from: `pretrained_checkpoint`, or the fresh weights, which are a
    function of the seed. So it is the same after a resume.

    Args:
        policy: the model before its first step; its weights are the reference's when `reference_load` is unset.
        datasets: all that will be scored, each with its name; None for a stream, which takes an online reference alone.

    Raises:
        ConfigError: the cache does not fit these data or these weights.
    """
    if not uses_reference(config.loss):
        return [NoReference()] * len(datasets)
    if config.loss.reference == "online":
        return [online_reference(config, platform)] * len(datasets)
    folder = config.loss.reference_cache
    assert folder is not None
    weights = weights_fingerprint(online_reference(config, platform).chunks if config.loss.reference_load else policy)
    fingerprints = [(name, data.fingerprint) for name, data in datasets if data is not None]
    return [
        CachedReference(load_reference_cache(folder, name, fingerprint, weights)) for name, fingerprint in fingerprints
    ]


def online_reference(config: Config, platform: Platform) -> OnlineReference:
    """The reference model with its weights."""
    reference = OnlineReference(config, platform)
    if start := config.loss.reference_load or config.checkpoint.pretrained_checkpoint:
        load_weights(reference.chunks, resolve_checkpoint(start), latent_head=False, config=config)
    return reference
