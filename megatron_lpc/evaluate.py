"""Evaluate a checkpoint.

    torchrun … -m megatron_lpc.evaluate --config RUN/config.yaml [--load RUN] [--valid-data NAME=FILE …]

Reports accuracy under the model's own latents. Where pairs belong to groups (`--group-column`), also how much the codes
tell about the groups, and the accuracy on a group's pairs under the latent from a few other pairs of that group; and
under latents that `megatron_lpc.personalize` wrote (`--latent`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from megatron_lpc.command_line import is_first_rank
from megatron_lpc.evaluation.evaluate import evaluate
from megatron_lpc.evaluation.options import Command, parse_command, support_settings
from megatron_lpc.evaluation.results import report_table, verdict_lines, write_report
from megatron_lpc.terminal import wide_console
from megatron_lpc.training.checkpoint_folder import resolve_checkpoint
from megatron_lpc.training.failure import reports_failures


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work; one rank says why."""
    with reports_failures():
        command = parse_command(sys.argv[1:] if argv is None else argv)
        reports = evaluate(command.config, command.support, command.latents)
    if not is_first_rank():
        return
    console = wide_console()
    console.print(report_table(reports))
    for line in verdict_lines(reports):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if command.output is not None:
        write_report(command.output, _settings(command), reports)


def _settings(command: Command) -> dict[str, object]:
    """What the reader of a report needs to know of its options."""
    config = command.config
    assert config.checkpoint.load is not None
    return {
        "checkpoint": str(resolve_checkpoint(config.checkpoint.load)),
        "loss_type": config.loss.loss_type,
        "support": support_settings(config, command.support),
        "latents": [str(path) for path in command.latents],
    }


if __name__ == "__main__":
    main()
