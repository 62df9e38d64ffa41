"""From options to the tokenizer and the data sets of a run."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_lpc.config import Config, ConfigError, validate_vocab, with_options
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer
from megatron_lpc.training.first_rank import from_first_rank, on_every_rank
from megatron_lpc.training.setup import RunContext


def open_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        ConfigError: it cannot be loaded.
    """
    with input_errors():
        return load_tokenizer(config.data)


def resolve(config: Config, tokenizer: Tokenizer) -> Config:
    """The options with those filled in that follow from the tokenizer: `vocab_size`, where it is unset.

    Raises:
        ConfigError: the tokenizer has more token ids than the model, or the padded vocabulary does not split over the
            tensor parallel ranks.
    """
    validate_vocab(config, tokenizer.vocab_size)
    if config.model.vocab_size is not None:
        return config
    return with_options(config, vocab_size=tokenizer.vocab_size)


def open_inputs(context: RunContext) -> tuple[RunContext, Tokenizer]:
    """The context with its options resolved, and the tokenizer they were resolved with: the start of every program.

    Raises:
        ConfigError: as `open_tokenizer` and `resolve`.
    """
    tokenizer = open_tokenizer(context.config)
    return replace(context, config=resolve(context.config, tokenizer)), tokenizer


def open_dataset(config: Config, tokenizer: Tokenizer, sources: Sequence[str], name: str) -> PairDataset:
    """A tokenized data set. Rank 0 builds what is not yet cached. On hosts that do not see its folder, one process each
    builds as well. All others wait for as long as that takes.

    Args:
        sources: files or Hub names.
        name: of the data set, for messages.

    Raises:
        ConfigError: on all ranks alike; a source cannot be read, a row of it cannot be used, the tokenizer lacks the
            chat template that it needs, or two hosts have other data.
    """

    def build() -> PairDataset:
        with input_errors():
            return build_dataset(config.data, tokenizer, sources, name)

    def of_first() -> str:
        dataset = build()
        return json.dumps([str(dataset.folder), dataset.fingerprint])

    folder, fingerprint = json.loads(from_first_rank(of_first))

    def open_here() -> PairDataset:
        if Path(folder).is_dir():
            with input_errors():
                return PairDataset(Path(folder))
        dataset = build()
        if dataset.fingerprint != fingerprint:
            raise ConfigError(
                f"data set `{name}`: is another one on {socket.gethostname()} ({dataset.folder}) than on the host of "
                f"rank 0 ({folder}): the files, the tokenizer or its date differ; give all hosts the same, or a "
                "--data-cache-path that they share"
            )
        return dataset

    return on_every_rank(open_here)
