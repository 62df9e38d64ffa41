"""Tokenize the data of a training before it starts.

    python -m megatron_lpc.preprocess_data --config FILE.yaml [--flag value …]

Takes the options of the training, which then finds its data in `data_cache_path`. It is one process, which starts
`num_workers` others; it needs no GPU, and may be interrupted and started again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from megatron_lpc.command_line import reports_errors
from megatron_lpc.config import Config, ConfigError, parse_args, validate_data
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.training.inputs import open_tokenizer


def preprocess_data(config: Config) -> None:
    """Build the tokenized copy of the training data, unless they are streamed, and of each validation set.

    Raises:
        ConfigError: an option is out of range, there are no data, or they or the tokenizer cannot be used.
    """
    validate_data(config)
    datasets = list(_datasets(config))
    if not datasets:
        raise ConfigError("--streaming: nothing to tokenize beforehand; drop it, or name --valid-data")
    tokenizer = open_tokenizer(config)
    for name, sources in datasets:
        with input_errors():
            data = build_dataset(config.data, tokenizer, sources, name)
        print(f"{name}: {len(data):,} pairs in {data.folder}")


def _datasets(config: Config) -> Iterator[tuple[str, list[str]]]:
    """The name and the sources of each."""
    if not config.data.streaming:
        yield "train", config.data.train_data
    for name, source in config.data.valid_data.items():
        yield name, [source]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work, and says why."""
    with reports_errors():
        arguments = sys.argv[1:] if argv is None else argv
        preprocess_data(parse_args(arguments, prog="python -m megatron_lpc.preprocess_data"))


if __name__ == "__main__":
    main()
