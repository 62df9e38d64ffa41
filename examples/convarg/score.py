"""Score every argument with a trained model: its reward under each of the model's latents, and under each code.

    python -m examples.convarg.score --config RUN/config.yaml --load RUN --valid-data all=runs/convarg/data/all.jsonl \
        --output RUN/scores.json

Options are those of `python -m megatron_lpc.evaluate`. The rewards of two arguments for one side of a debate, taken
from each other, are the margin of the pair, whoever labels it, so the 800 arguments tell what the model says of tens of
thousands of votes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.convarg.predictions import argument_names
from megatron_lpc.command_line import UserError, is_first_rank, reports_errors
from megatron_lpc.config import Config, training_only_options, with_defaults, with_options
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.marginal import log_prior
from megatron_lpc.evaluation.options import parse_command
from megatron_lpc.evaluation.pair_table import PairTable, Responses
from megatron_lpc.evaluation.scoring import report_sources
from megatron_lpc.files import write_json
from megatron_lpc.losses import implicit_rewards
from megatron_lpc.training.setup import start_distributed, stop_distributed


def score(config: Config) -> dict[str, Any]:
    """Argument -> rewards, of all of `valid_data`, which is one file of `prepare.py`; and the prior of each debate.

    Raises:
        UserError: the file has not the columns of `prepare.py`, or not as many rows as the model has scored.
    """
    (name, source), *others = config.data.valid_data.items()
    if others or config.loss.loss_type != "dpo":
        raise UserError("--valid-data: name one file, all.jsonl of prepare.py, and score a model of --loss-type dpo")
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    config = with_defaults(with_options(config, train_data=[source]), training_only_options("logging"))
    scorer = CheckpointScorer(start_distributed(config))
    sources = report_sources(scorer.config.latent)
    table = scorer.score(name, scorer.open(name, source), sources)
    stop_distributed()
    if len(table) != len(rows):
        raise UserError(
            f"{source}: {len(rows)} rows, of which {len(table)} can be scored; take all.jsonl of prepare.py"
        )
    latents = [latent for latent in sources if latent not in ("codes", "posterior")]
    rewards = {latent: _rewards(config, table, Responses.under_latent(table, at)) for at, latent in enumerate(latents)}
    if "codes" in sources:
        rewards["codes"] = _rewards(config, table, Responses.under_codes(table))
    arguments: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        for side, name in enumerate(argument_names(row)):
            arguments[name] = {latent: values[side][index] for latent, values in rewards.items()}
    priors = {row["debate"]: prior for row, prior in zip(rows, log_prior(table).tolist(), strict=True)}
    return {"arguments": arguments, "log_prior": priors}


def _rewards(config: Config, table: PairTable, of: Responses) -> tuple[list[Any], list[Any]]:
    """Of chosen and of rejected, one entry per pair: a number, or under every code a list of K."""
    by_code = [
        implicit_rewards(config.loss, logps, of.reference_logps, of.response_length)
        for logps in of.logps.view(-1, 2 * len(table))
    ]
    chosen, rejected = (
        torch.stack([getattr(rewards, side) for rewards in by_code], dim=1) for side in ("chosen", "rejected")
    )
    if of.logps.ndim == 1:
        return chosen[:, 0].tolist(), rejected[:, 0].tolist()
    return chosen.tolist(), rejected.tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    with reports_errors():
        command = parse_command(sys.argv[1:] if argv is None else argv)
        config, output = command.config, command.output
        if output is None:
            raise UserError("--output: is missing; name the JSON file to write")
        scores = score(config)
    if is_first_rank():
        write_json(output, scores)


if __name__ == "__main__":
    main()
