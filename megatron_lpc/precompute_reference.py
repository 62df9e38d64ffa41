"""Write reference log-probs once: `torchrun … -m megatron_lpc.precompute_reference --config FILE.yaml [--flag value …]`.

Takes the options of the training that will read them, `--reference precomputed` among them. The layout may be another one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch.distributed as dist
from rich.console import Console
from rich.progress import track

from megatron_lpc.command_line import reports_errors
from megatron_lpc.config import Config, ConfigError, parse_args
from megatron_lpc.evaluation.scoring import score_pairs
from megatron_lpc.losses import uses_reference
from megatron_lpc.training.reference import NoReference
from megatron_lpc.training.reference_cache import save_reference_cache, weights_fingerprint
from megatron_lpc.training.run import make_loader, online_reference, open_data, open_tokenizer
from megatron_lpc.training.setup import start_distributed, stop_distributed


def precompute_reference(config: Config) -> None:
    """Score the training data and each validation set, whole, with the reference, into the folder `reference_cache`.

    Raises:
        ConfigError: the options cannot work, or ask for a training that would not read the cache.
    """
    folder = config.loss.reference_cache
    if not uses_reference(config.loss):
        raise ConfigError(f"--loss-type {config.loss.loss_type}: has no reference, so there is nothing to precompute")
    if config.loss.reference != "precomputed" or folder is None:
        raise ConfigError(
            "nothing to precompute: set --reference precomputed and --reference-cache FOLDER, as for the training"
        )
    platform = start_distributed(config)
    tokenizer = open_tokenizer(config)
    reference = online_reference(config, platform).chunks
    weights = weights_fingerprint(reference)
    console, is_first = Console(stderr=True), dist.get_rank() == 0
    for name, sources in [
        ("train", config.data.train_data),
        *((name, [source]) for name, source in config.data.valid_data.items()),
    ]:
        data = open_data(config, tokenizer, sources, name)
        loader = make_loader(config, tokenizer, data)
        steps = track(
            loader.evaluation(),
            f"Scoring {name}",
            total=math.ceil(len(data) / loader.global_batch_size),
            console=console,
            disable=not is_first,
        )
        table = score_pairs(reference, steps, NoReference(), ("none",), platform.device)
        if is_first:
            path = save_reference_cache(folder, table.logps[:, 0], data.fingerprint, weights)
            console.print(f"{name}: {len(data):,} pairs in {path}", soft_wrap=True, markup=False)
    stop_distributed()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work; rank 0 says why."""
    with reports_errors():
        precompute_reference(
            parse_args(sys.argv[1:] if argv is None else argv, prog="python -m megatron_lpc.precompute_reference")
        )


if __name__ == "__main__":
    main()
