"""Write reference log-probs once.

    torchrun … -m megatron_lpc.precompute_reference --config FILE.yaml [--flag value …]

Takes the options of the training that will read them, `--reference precomputed` among them. The parallel layout may be
another one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from megatron_lpc.config import Config, ConfigError, parse_args
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.evaluation.scoring import score_pairs
from megatron_lpc.losses import uses_reference
from megatron_lpc.terminal import progress
from megatron_lpc.training.failure import reports_failures
from megatron_lpc.training.inputs import open_dataset, open_inputs
from megatron_lpc.training.loaders import pair_loader
from megatron_lpc.training.reference import NoReference, OnlineReference, online_reference
from megatron_lpc.training.reference_cache import save_reference_cache, weights_fingerprint
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed


def precompute_reference(config: Config) -> None:
    """Score the training data and each validation set, whole, with the reference, into the folder `reference_cache`.

    Raises:
        ConfigError: the options cannot work, or ask for a training that would not read the cache.
    """
    folder = _cache_folder(config)
    context, tokenizer = open_inputs(start_distributed(config))
    reference = online_reference(context)
    weights = weights_fingerprint(reference.chunks)
    console = Console(stderr=True, quiet=dist.get_rank() != 0)
    for name, data in _datasets(context.config, tokenizer):
        logps = _score(context, tokenizer, reference, name, data)
        if dist.get_rank() == 0:
            path = save_reference_cache(folder, logps, data.fingerprint, weights)
            console.print(f"{name}: {len(data):,} pairs in {path}", soft_wrap=True, markup=False)
    stop_distributed()


def _cache_folder(config: Config) -> Path:
    """Raises ConfigError where training would not read a cache."""
    loss = config.loss
    if not uses_reference(loss):
        raise ConfigError(f"--loss-type {loss.loss_type}: has no reference, so there is nothing to precompute")
    if loss.reference != "precomputed" or loss.reference_cache is None:
        raise ConfigError(
            "nothing to precompute: set --reference precomputed and --reference-cache FOLDER, as for the training"
        )
    return Path(loss.reference_cache)


def _datasets(config: Config, tokenizer: Tokenizer) -> Iterator[tuple[str, PairDataset]]:
    """The training data and each validation set, by name."""
    yield "train", open_dataset(config, tokenizer, config.data.train_data, "train")
    for name, source in config.data.valid_data.items():
        yield name, open_dataset(config, tokenizer, [source], name)


def _score(
    context: RunContext, tokenizer: Tokenizer, reference: OnlineReference, name: str, data: PairDataset
) -> Tensor:
    """[P, 2] fp64 log-probs of chosen and rejected of every pair.

    Collectives: those of `score_pairs`.
    """
    loader = pair_loader(context, tokenizer, data)
    total = math.ceil(len(data) / loader.global_batch_size)
    steps = progress(loader.evaluation(), f"Scoring {name}", total)
    table = score_pairs(context, reference.chunks, steps, NoReference(), ("none",))
    return table.logps[:, 0]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work; one rank says why."""
    with reports_failures():
        arguments = sys.argv[1:] if argv is None else argv
        precompute_reference(parse_args(arguments, prog="python -m megatron_lpc.precompute_reference"))


if __name__ == "__main__":
    main()
