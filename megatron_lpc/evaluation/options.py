"""Options of an evaluation: those of the run that it judges, and how a group's latent is made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from megatron_lpc.config import Config, ConfigError, parse_args
from megatron_lpc.config.options import all_options

_READ_SECTIONS = ("model", "loss", "data")
_READ = (
    *("latent_mode", "codebook_size", "latent_mlp_hidden_size", "posterior_input"),
    *("device", "tensor_model_parallel_size", "pipeline_model_parallel_size", "num_virtual_stages_per_pipeline_rank"),
    *("sequence_parallel", "distributed_timeout_minutes", "micro_batch_size", "global_batch_size", "bf16", "load"),
    *("seed", "pretrained_checkpoint"),  # They name the reference: what training started from.
)
# A cache of reference log-probs belongs to the data of the run: here the reference is always a model.
_NOT_READ = ("attention_dropout", "hidden_dropout", "train_data", "reference", "reference_cache")


@dataclass(frozen=True, kw_only=True)
class SupportOptions:
    """How a group's latent is made."""

    pairs: int = 8
    """Pairs of each group whose mean posterior is its latent."""
    seed: int = 0
    """Which pairs those are."""
    data: str | None = None
    """File or Hub name to draw them from; each data set itself when unset."""


def has_groups(config: Config) -> bool:
    """Whether there are codes and groups to compare."""
    return config.latent.latent_mode == "lpc" and config.data.group_column is not None


def parse_command(argv: Sequence[str]) -> tuple[Config, SupportOptions, Path | None]:
    """Options of the run, of the support, and the JSON file to write, from a command line without the program's name.

    Options in the run's own file that concern training alone are not read; as flags they are refused, as is every flag without effect.

    Raises:
        ConfigError: an option is unknown, ill-typed or without effect, or something to evaluate is missing.
    """
    default = SupportOptions()
    parser = _Parser(
        prog="python -m megatron_lpc.evaluate",
        usage="%(prog)s --config RUN/config.yaml [--load RUN] [--valid-data NAME=FILE ...] [--flag value ...]",
        epilog="Flags of megatron_lpc.train that concern model, data, objective, layout and batches work here too: see its --help.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--support-pairs", type=int, metavar="N", help=f"pairs of a group that make its latent ({default.pairs})"
    )
    parser.add_argument("--support-seed", type=int, metavar="N", help=f"which pairs those are ({default.seed})")
    parser.add_argument(
        "--support-data", metavar="FILE", help="file or Hub name to draw them from (each data set itself)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write what is found as JSON")
    known, rest = parser.parse_known_args(list(argv))
    config = parse_args(rest, prog=parser.prog)
    _refuse_training_flags(rest)
    own = vars(known)
    output = own.pop("output", None)
    support = SupportOptions(**{name.removeprefix("support_"): value for name, value in own.items()})
    if own and not has_groups(config):
        flag = "--" + next(iter(own)).replace("_", "-")
        raise ConfigError(
            f"{flag}: support needs codes and groups; set --latent-mode lpc and --group-column, or drop it"
        )
    if support.pairs < 1:
        raise ConfigError(f"--support-pairs {support.pairs}: must be at least 1")
    if not config.data.valid_data:
        raise ConfigError("--valid-data: is empty; name at least one data set, NAME=FILE")
    if config.checkpoint.load in (None, "auto"):
        config.checkpoint.load = config.checkpoint.save
    if config.checkpoint.load is None:
        raise ConfigError("--load: is unset, and so is `save` in the configuration; name a checkpoint")
    return config, support, output


class _Parser(argparse.ArgumentParser):
    """Reports its errors as `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _refuse_training_flags(words: Sequence[str]) -> None:
    read = {
        option.flag for option in all_options().values() if option.section in _READ_SECTIONS or option.name in _READ
    }
    read -= {all_options()[name].flag for name in _NOT_READ}
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag != "--config" and flag.replace("--no-", "--", 1) not in read:
            raise ConfigError(f"{flag}: has no effect on an evaluation; drop it")
