"""From data sets to the micro-batches of this rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from megatron_lpc.config import Config, ConfigError, seq_len_multiple
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.episodes import EpisodeIndex
from megatron_lpc.data.hidden_store import HiddenStore
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.loader import PairLoader, StreamLoader, pairs_in_flight
from megatron_lpc.data.micro_batches import MicroBatchPlanner
from megatron_lpc.data.row_reader import check_reader_state
from megatron_lpc.data.stream import PairStream
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.platform.process_groups import ProcessGroups
from megatron_lpc.training.collectives import from_data_parallel_ranks
from megatron_lpc.training.mfu import attention_cost
from megatron_lpc.training.setup import RunContext
from megatron_lpc.training.state import RunState

TrainingLoader = PairLoader | StreamLoader


def micro_batch_planner(context: RunContext, tokenizer: Tokenizer) -> MicroBatchPlanner:
    """How this run lays out pairs in sequences."""
    config = context.config
    data, parallel = config.data, config.parallel
    multiple = data.pad_to_multiple_of or context.platform.sequence_multiple
    is_interleaved = parallel.num_virtual_stages_per_pipeline_rank is not None
    return MicroBatchPlanner(
        pad_id=tokenizer.pad_id,
        micro_batch_size=config.training.micro_batch_size,
        pad_to_multiple=math.lcm(multiple, seq_len_multiple(config)),
        micro_batch_multiple=parallel.pipeline_model_parallel_size if is_interleaved else 1,
        share_prompt=data.share_prompt,
        pack_to=data.pack_to,
        attention_cost=attention_cost(config),
        group_numbers=_group_numbers(config),
        pin_memory=context.platform.is_cuda,
    )


def _group_numbers(config: Config) -> dict[str, int] | None:
    """Number of each group with a vector of its own; None where the model has no such vectors."""
    if config.latent.latent_mode != "embedding":
        return None
    return {name: number for number, name in enumerate(config.latent.known_groups, 1)}


def pair_loader(
    context: RunContext,
    tokenizer: Tokenizer,
    dataset: PairDataset,
    hidden: HiddenStore | None = None,
    episodes: EpisodeIndex | None = None,
) -> PairLoader:
    """This rank's part of a data set. Ranks that hold parts of one copy of the model load the same pairs.

    Args:
        hidden: hidden states of the data set that come with its micro-batches.
        episodes: of training data whose pairs come in episodes.

    Raises:
        ConfigError: a pair or an episode does not fit `pack_to`.
    """
    planner = micro_batch_planner(context, tokenizer)
    with input_errors():
        planner.check_fit(dataset.lengths)
        if episodes is not None:
            planner.check_episodes_fit(dataset.lengths, episodes)
    return PairLoader(
        dataset=dataset,
        planner=planner,
        global_batch_size=context.config.training.global_batch_size,
        dp_rank=context.groups.dp_rank,
        dp_size=context.groups.dp_size,
        episodes=episodes,
        hidden=hidden,
    )


def stream_loader(context: RunContext, tokenizer: Tokenizer, state: RunState) -> StreamLoader:
    """This rank's part of streamed training data, from where the run was saved.

    Raises:
        ConfigError: the run that is resumed had another number of data parallel ranks, or was of an earlier version.
    """
    config, groups = context.config, context.groups
    positions, dp_rank, dp_size = state.positions, groups.dp_rank, groups.dp_size
    global_batch_size = config.training.global_batch_size
    if positions and len(positions) != dp_size:
        raise ConfigError(
            f"--streaming: the checkpoint is of {len(positions)} data parallel ranks, each with its share of the data, "
            f"and this run has {dp_size}; resume with as many"
        )
    start = positions[dp_rank] if positions else None
    if start is not None:
        with input_errors():
            check_reader_state(start)
    stream = PairStream(
        config.data,
        tokenizer,
        dp_rank=dp_rank,
        dp_size=dp_size,
        max_ahead=pairs_in_flight(global_batch_size, dp_size),
        records_bad_rows=groups.is_model_parallel_leader,
    )
    return StreamLoader(
        stream=stream,
        planner=micro_batch_planner(context, tokenizer),
        global_batch_size=global_batch_size,
        dp_rank=dp_rank,
        dp_size=dp_size,
        start=start,
    )


def training_batches(config: Config, loader: TrainingLoader, consumed_samples: int) -> Iterator[list[PairBatch]]:
    """The micro-batches of this rank, one step after the other, without end.

    Raises:
        ConfigError: a streamed row cannot be used.
    """
    with input_errors():
        yield from loader.training(config.training.seed, consumed_samples)


def stream_positions(loader: TrainingLoader, consumed_samples: int, groups: ProcessGroups) -> list[dict[str, Any]]:
    """Where the reader of each data parallel rank is, for a checkpoint; empty where the data are not streamed.

    Collectives: with streamed data, an all-gather of objects over the data parallel group.
    """
    if not isinstance(loader, StreamLoader):
        return []
    return from_data_parallel_ranks(loader.position(consumed_samples), groups)
