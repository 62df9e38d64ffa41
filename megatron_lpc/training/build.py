"""A run, built: from its options to everything that the training loop needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from megatron_lpc.config import Config, validate_episodes
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.cache import data_fingerprint
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.episodes import EpisodeIndex
from megatron_lpc.data.loader import PairLoader
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.platform import Platform
from megatron_lpc.training.checkpoint import Checkpoints
from megatron_lpc.training.checkpoint_search import starting_point
from megatron_lpc.training.episodes import open_episodes
from megatron_lpc.training.hidden_cache import hidden_stores, offload_cached_backbone
from megatron_lpc.training.inputs import open_dataset, open_inputs
from megatron_lpc.training.known_groups import with_known_groups
from megatron_lpc.training.loaders import (
    TrainingLoader,
    pair_loader,
    stream_loader,
    stream_positions,
    training_batches,
)
from megatron_lpc.training.phases import doing
from megatron_lpc.training.policy import TrainablePolicy, build_policy, make_trainable
from megatron_lpc.training.reference import Reference, build_references
from megatron_lpc.training.resume import check_resumed, resumed_state
from megatron_lpc.training.run_length import length_notes, total_steps
from megatron_lpc.training.setup import RunContext
from megatron_lpc.training.state import RunState


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Held-out pairs that are scored during the run."""

    name: str
    loader: PairLoader
    reference: Reference


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a training run is made of. Its parts change as they train; which parts it has does not."""

    context: RunContext
    tokenizer: Tokenizer
    train_data: PairDataset | None
    """None where the training data are streamed."""
    train_loader: TrainingLoader
    validation: tuple[ValidationSet, ...]
    policy: TrainablePolicy
    reference: Reference
    """Of the training data."""
    checkpoints: Checkpoints
    start: RunState
    """How far the run is when this process starts: as the checkpoint says, or at step 0."""
    notes: tuple[str, ...]
    """Sentences about the run that the terminal shows at its start."""

    @property
    def config(self) -> Config:
        """The options, resolved."""
        return self.context.config

    @property
    def platform(self) -> Platform:
        return self.context.platform

    @property
    def train_iters(self) -> int:
        """Steps of the whole run."""
        return self.policy.train_iters

    def batches(self) -> Iterator[list[PairBatch]]:
        """This rank's micro-batches of each step that is still to do."""
        batches = training_batches(self.config, self.train_loader, self.start.consumed_samples)
        return islice(batches, self.train_iters - self.start.iteration)

    def save_checkpoint(self, state: RunState) -> None:
        """Save a checkpoint after the step that led to `state`; nothing where `save` is unset.

        Collectives: those of `Checkpoints.save` and of `stream_positions`.
        """
        if self.config.checkpoint.save is None:
            return
        with doing("save"):
            positions = stream_positions(self.train_loader, state.consumed_samples, self.context.groups)
            self.checkpoints.save(replace(state, positions=positions))


def assemble_run(context: RunContext) -> Run:
    """Build or load everything that a run needs, up to its first step, in processes that have started.

    Several runs of one parallel layout can share them.

    Collectives: those of the functions called, in this order on all ranks.

    Raises:
        ConfigError: the options cannot work, a source of data cannot be read, or a checkpoint or cache does not fit.
            Nothing has then been written.
    """
    validate_episodes(context.config, context.groups.dp_size)
    context, tokenizer = open_inputs(context)
    config = context.config

    train_data = None
    if not config.data.streaming:
        train_data = open_dataset(config, tokenizer, config.data.train_data, "train")
    valid_data = {
        name: open_dataset(config, tokenizer, [source], name) for name, source in config.data.valid_data.items()
    }
    resumed = starting_point(context)
    context, notes = with_known_groups(context, train_data, resumed)
    config = context.config
    episodes: EpisodeIndex | None = None
    if train_data is not None and config.latent.posterior_context:
        episodes, of_episodes = open_episodes(config, train_data)
        notes += of_episodes
    epoch = None if train_data is None else (episodes.pairs_per_epoch if episodes else len(train_data))
    train_iters = total_steps(config, epoch)
    notes += [] if epoch is None else length_notes(config.training, epoch, train_iters)
    start = RunState(train_iters=train_iters, data=training_data_fingerprint(config, tokenizer, train_data))

    if resumed is not None:
        notes += check_resumed(resumed, config, start)
    chunks = build_policy(context, resumes=resumed is not None)
    untrained = chunks if resumed is None else None
    reference, *valid_references = build_references(context, untrained, [("train", train_data), *valid_data.items()])
    policy = make_trainable(context, chunks, train_iters)
    checkpoints = Checkpoints(context, policy)
    if resumed is not None:
        start = resumed_state(checkpoints.load(resumed), start)

    datasets = [("train", train_data), *valid_data.items()]
    hidden, *valid_hidden = hidden_stores(context, tokenizer, policy.chunks, datasets)
    offload_cached_backbone(context, policy.chunks)
    if train_data is None:
        train_loader: TrainingLoader = stream_loader(context, tokenizer, start)
    else:
        train_loader = pair_loader(context, tokenizer, train_data, hidden, episodes)
    validation = tuple(
        ValidationSet(name=name, loader=pair_loader(context, tokenizer, data, own_hidden), reference=own_reference)
        for (name, data), own_reference, own_hidden in zip(
            valid_data.items(), valid_references, valid_hidden, strict=True
        )
    )
    return Run(
        context=context,
        tokenizer=tokenizer,
        train_data=train_data,
        train_loader=train_loader,
        validation=validation,
        policy=policy,
        reference=reference,
        checkpoints=checkpoints,
        start=start,
        notes=tuple(notes),
    )


def training_data_fingerprint(config: Config, tokenizer: Tokenizer, train_data: PairDataset | None) -> str:
    """Names the training data of a run; a stream (None), which is not read beforehand, by the names of its sources."""
    if train_data is not None:
        return train_data.fingerprint
    return data_fingerprint(config.data, tokenizer, config.data.train_data)
