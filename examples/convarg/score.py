"""Score every argument with a trained model: its reward under the latent of no worker, and under each of many latents.

    python -m examples.convarg.score --config RUN/config.yaml --load RUN --valid-data all=runs/convarg/data/all.jsonl \
        --output RUN/scores.json

The many are the codes, or with `--latent-mode embedding` and `gaussian` the latents of workers: from the first M of
their votes in the order of `evaluate.py`, for each M of `--support-pairs` (8 50), drawn from the run's training data or
from `--support-data`. Other options are those of `python -m megatron_lpc.evaluate`.

The rewards of two arguments for one side of a debate, taken from each other, are the margin of the pair, whoever labels
it, so the 800 arguments tell what the model says of tens of thousands of votes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.convarg.predictions import SUPPORT_SIZES, argument_names, support_names
from examples.convarg.worker_latents import MODES, worker_latents
from megatron_lpc.command_line import ArgumentParser, UserError, is_first_rank, reports_errors
from megatron_lpc.config import Config, training_only_options, with_defaults, with_options
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.marginal import log_prior
from megatron_lpc.evaluation.options import SupportOptions, parse_command
from megatron_lpc.evaluation.pair_table import Responses
from megatron_lpc.evaluation.scoring import report_sources
from megatron_lpc.files import write_json
from megatron_lpc.losses import implicit_rewards
from megatron_lpc.training.setup import start_distributed, stop_distributed


def score(config: Config, sizes: Sequence[int], support: SupportOptions) -> dict[str, Any]:
    """Argument -> rewards, of all of `valid_data`, which is one file of `prepare.py`; the prior of each debate; and the
    support sets of the latents of workers.

    Args:
        sizes: of these support sets.

    Raises:
        UserError: the file has not the columns of `prepare.py`, or not as many rows as the model has scored; or as
            `worker_latents`.
    """
    (name, source), *others = config.data.valid_data.items()
    if others or config.loss.loss_type != "dpo":
        raise UserError("--valid-data: name one file, all.jsonl of prepare.py, and score a model of --loss-type dpo")
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    given, *more = [support.data] if support.data else config.data.train_data
    if more and config.latent.latent_mode in MODES:
        raise UserError("--support-data: is missing; name the file to draw from, for the run has several")
    config = with_defaults(with_options(config, train_data=[source]), training_only_options("logging"))
    scorer = CheckpointScorer(start_distributed(config))
    latent, *_ = sources = report_sources(scorer.config.latent)
    data = scorer.open(name, source)
    table = scorer.score(name, data, (latent, "codes") if "codes" in sources else (latent,))
    rewards = {latent: _rewards(config, Responses.under_latent(table, 0))}
    if "codes" in sources:
        rewards["codes"] = _rewards(config, Responses.under_codes(table))
    support_sets = []
    if config.latent.latent_mode in MODES:
        of_workers = worker_latents(scorer, given, sizes, support)
        support_sets = [support_names(votes) for votes in of_workers.support_sets]
        under_each = scorer.score(name, data, ("mixture",), of_workers.vectors[:, None])
        rewards["support"] = _rewards(config, Responses.under_latents(under_each))
    stop_distributed()
    if len(table) != len(rows):
        raise UserError(
            f"{source}: {len(rows)} rows, of which {len(table)} can be scored; take all.jsonl of prepare.py"
        )
    arguments: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        for side, name in enumerate(argument_names(row)):
            arguments[name] = {latent: values[side][index] for latent, values in rewards.items()}
    priors = {row["debate"]: prior for row, prior in zip(rows, log_prior(table).tolist(), strict=True)}
    return {"arguments": arguments, "log_prior": priors, "support_sets": support_sets}


def _rewards(config: Config, of: Responses) -> tuple[list[Any], list[Any]]:
    """Of chosen and of rejected, one entry per pair: a number, or under several latents a list."""
    by_latent = [
        implicit_rewards(config.loss, logps, of.reference_logps, of.response_length)
        for logps in of.logps.view(-1, len(of.reference_logps))
    ]
    chosen, rejected = (
        torch.stack([getattr(rewards, side) for rewards in by_latent], dim=1) for side in ("chosen", "rejected")
    )
    if of.logps.ndim == 1:
        return chosen[:, 0].tolist(), rejected[:, 0].tolist()
    return chosen.tolist(), rejected.tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    with reports_errors():
        # The library's flag of this name takes one number.
        parser = ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--support-pairs", type=int, nargs="+", metavar="M")
        known, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
        command = parse_command(rest)
        config, output, support, sizes = command.config, command.output, command.support, known.support_pairs
        if output is None:
            raise UserError("--output: is missing; name the JSON file to write")
        if config.latent.latent_mode not in MODES and (sizes or support != SupportOptions()):
            raise UserError("--support-...: codes are scored, not the latents of workers; drop it")
        if sizes and min(sizes) < 1:
            raise UserError(f"--support-pairs {min(sizes)}: must be at least 1")
        scores = score(config, sizes or SUPPORT_SIZES, support)
    if is_first_rank():
        write_json(output, scores)


if __name__ == "__main__":
    main()
