"""The latent of an annotator, from a few labelled pairs.

    torchrun … -m megatron_lpc.personalize --load RUN --pairs FILE --output FILE.safetensors
    torchrun … -m megatron_lpc.personalize --load RUN --pairs FILE --pool FILE --select 4

Prints the mixture weights of the codes with their intervals and what more pairs would change, and writes the weights;
`megatron_lpc.evaluate`, `megatron_lpc.generate` and exported models take the file. With a pool of pairs without labels
it says which of them to label next.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich.table import Table

from megatron_lpc.command_line import is_first_rank, reports_errors
from megatron_lpc.convert.hub.saved_latent import SavedLatent
from megatron_lpc.evaluation.certainty import Certainty, more_pairs_line
from megatron_lpc.evaluation.personal_options import parse_personal_command
from megatron_lpc.evaluation.personalize import Personal, SelectedRow, personalize, save_latent, save_selected
from megatron_lpc.terminal import wide_console

_MOST_CODES = 8
"""Codes in the table, those of most weight."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work; rank 0 says why."""
    with reports_errors():
        config, options = parse_personal_command(sys.argv[1:] if argv is None else argv)
        found = personalize(config, options)
    if not is_first_rank():
        return
    _show(found)
    if options.output is not None and found.latent is not None:
        save_latent(options.output, found.latent)
    if options.selected is not None:
        save_selected(options.selected, found.selected)


def _show(found: Personal) -> None:
    console = wide_console()
    if found.latent is not None and found.certainty is not None:
        console.print(_weights_table(found.latent))
        for line in _certainty_lines(found.latent, found.certainty):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.selected:
        console.print(_selected_table(found.selected))


def _weights_table(latent: SavedLatent) -> Table:
    title = f"Codes of most weight, from {latent.pairs} pairs ({latent.posterior})"
    table = Table("code", title=title, title_justify="left")
    for heading in ("weight", "95% interval"):
        table.add_column(heading, justify="right")
    for code in latent.weights.argsort(descending=True)[:_MOST_CODES].tolist():
        interval = ""
        if latent.interval is not None:
            low, high = latent.interval[:, code].tolist()
            interval = f"{low:.3f} to {high:.3f}"
        table.add_row(str(code), f"{float(latent.weights[code]):.3f}", interval)
    return table


def _certainty_lines(latent: SavedLatent, certainty: Certainty) -> list[str]:
    codes = len(latent.weights)
    return [
        f"Entropy of the weights: {certainty.entropy:.2f} nats of ln {codes} = {math.log(codes):.2f}, "
        f"as of {certainty.effective_codes:.1f} codes of equal weight.",
        more_pairs_line(certainty, latent.pairs),
    ]


def _selected_table(selected: Sequence[SelectedRow]) -> Table:
    title = "Pairs to label next: what a label tells of the code by itself, and beside those above it"
    table = Table("row", title=title, title_justify="left")
    for heading in ("nats", "beside"):
        table.add_column(heading, justify="right")
    for one in selected:
        location = one.row.location
        nats = (one.selected.information, one.selected.gain)
        table.add_row(f"{location.file}:{location.line}", *(f"{value:.4f}" for value in nats))
    return table


if __name__ == "__main__":
    main()
