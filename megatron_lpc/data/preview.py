"""Print preference data as the model will see them: the first pairs with their special tokens, and how long all are.

    python -m megatron_lpc.data.preview --train-data FILE … --tokenizer-model NAME [--num-pairs N] [--flag value …]

Takes the options of the training, `--config` among them, and reads those of the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from megatron_lpc.command_line import ArgumentParser, reports_errors
from megatron_lpc.config import ConfigError, DataConfig, parse_args, validate_values
from megatron_lpc.data.encode import EncodedPair, common_length, encode_pair
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Location, Row, read_rows
from megatron_lpc.data.tokenizer import Tokenizer, load_tokenizer
from megatron_lpc.terminal import progress, wide_console

_STYLES = {"prompt": "default", "chosen": "green", "rejected": "red"}


@dataclass(frozen=True)
class PreviewedPair:
    """A pair as the model sees it, and as it was before it was cut."""

    location: Location
    kept: EncodedPair
    whole: EncodedPair


@dataclass(frozen=True)
class Preview:
    """What became of the rows that were read."""

    pairs: list[PreviewedPair] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)


def preview(rows: Iterable[Row | BadRow], tokenizer: Tokenizer, config: DataConfig) -> Preview:
    """The rows, encoded as for training; bad ones are kept, whatever `bad_rows` says.

    Raises:
        LookupError: there are chat messages but no chat template.
    """
    found = Preview()
    unlimited = replace(config, max_length=sys.maxsize, max_prompt_length=None)
    for row in rows:
        try:
            pair = to_pair(row, config)
            whole = encode_pair(pair, tokenizer, unlimited)
            found.pairs.append(PreviewedPair(pair.location, encode_pair(pair, tokenizer, config), whole))
        except BadRow as bad:
            found.bad_rows.append(bad)
    return found


def render_pair(previewed: PreviewedPair, tokenizer: Tokenizer) -> RenderableType:
    """The texts of a pair; those of loss tokens are coloured, special tokens bold, line feeds marked."""
    parts: list[Text] = []
    prompt = list(previewed.kept.prompt)
    for name, style in _STYLES.items():
        kept, whole = getattr(previewed.kept, name), getattr(previewed.whole, name)
        kind = "tokens" if name == "prompt" else "loss tokens"
        cut = f" of {len(whole):,}, cut" if len(kept) < len(whole) else ""
        # A response by itself would lose its first space, and the prompt the start of a character that was cut.
        decoded = tokenizer.decode(prompt if name == "prompt" else [*prompt, *kept], show_special=True)
        if name != "prompt":
            decoded = decoded[common_length(decoded, tokenizer.decode(prompt, show_special=True)) :]
        text = Text(decoded.replace("\n", "⏎\n"), style)
        text.highlight_words(tokenizer.special_tokens, "bold magenta")
        parts += [Text(f"{name}: {len(kept):,} {kind}{cut}", "bold"), text]
    group = f", group {previewed.kept.group}" if previewed.kept.group is not None else ""
    title = f"{previewed.location.file}:{previewed.location.line}{group}"
    return Panel(Group(*parts), title=Text(title), title_align="left")


def lengths_table(found: Preview) -> Table:
    """Tokens before the cut: quantiles of the prompts, the responses and the longer prompt + response."""
    lengths = np.array([pair.whole.lengths for pair in found.pairs])
    columns = {
        "prompt": lengths[:, 0],
        "chosen": lengths[:, 1],
        "rejected": lengths[:, 2],
        "prompt + longer response": lengths[:, 0] + lengths[:, 1:].max(axis=1),
    }
    table = Table("tokens")
    for heading in ("mean", "min", "50%", "95%", "99%", "max"):
        table.add_column(heading, justify="right")
    for name, values in columns.items():
        figures = [values.mean(), values.min(), *np.quantile(values, [0.5, 0.95, 0.99]), values.max()]
        table.add_row(name, *(f"{figure:,.0f}" for figure in figures))
    return table


def summary_lines(found: Preview, tokenizer: Tokenizer, config: DataConfig) -> Iterator[str]:
    """Counts of rows, of what was cut, and of the groups; the first bad rows."""
    num_pairs, num_bad = len(found.pairs), len(found.bad_rows)
    yield f"rows: {num_pairs + num_bad:,}, pairs: {num_pairs:,}, bad rows: {num_bad:,}"
    if num_pairs:
        prompts = sum(len(pair.kept.prompt) < len(pair.whole.prompt) for pair in found.pairs)
        responses = sum(pair.kept.lengths[1:] != pair.whole.lengths[1:] for pair in found.pairs)
        limit = f"--max-length {config.max_length}, --truncation-mode {config.truncation_mode}"
        yield f"cut ({limit}): {prompts / num_pairs:.1%} of the prompts, responses of {responses / num_pairs:.1%}"
    groups = {pair.kept.group for pair in found.pairs}
    if groups - {None}:
        yield f"groups: {len(groups):,}"
    if tokenizer.template_date is not None:
        yield f"the chat template writes the date of {tokenizer.template_date.isoformat()}"
    for bad in found.bad_rows[:3]:
        yield f"bad row: {bad}"


def _show(console: Console, rows: Iterable[Row | BadRow], config: DataConfig, num_pairs: int) -> None:
    tokenizer = load_tokenizer(config)
    found = preview(progress(rows, "Tokenizing", unit="rows"), tokenizer, config)
    for previewed in found.pairs[:num_pairs]:
        console.print(render_pair(previewed, tokenizer))
    if found.pairs:
        console.print(lengths_table(found))
    for line in summary_lines(found, tokenizer, config):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m megatron_lpc.data.preview",
        usage="%(prog)s --train-data FILE ... --tokenizer-model NAME [--config FILE.yaml] [--flag value ...]",
        description=(__doc__ or "").splitlines()[0],
        epilog="All flags of megatron_lpc.train work here too, and those of the data are read: see its --help.",
        allow_abbrev=False,
        error_class=ConfigError,
    )
    parser.add_argument("--num-pairs", type=int, default=3, metavar="N", help="pairs to print (3)")
    parser.add_argument(
        "--num-rows", type=int, default=1000, metavar="N", help="rows of the data to read for the statistics (1000)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work."""
    with reports_errors():
        parser = _parser()
        known, rest = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
        options = parse_args(rest, prog=parser.prog)
        validate_values(options)
        config = options.data
        _check(known, config)
        sources = [*config.train_data, *config.valid_data.values()]
        rows = islice(chain.from_iterable(map(read_rows, sources)), known.num_rows)
        with input_errors():
            _show(wide_console(), rows, config, known.num_pairs)


def _check(known: argparse.Namespace, config: DataConfig) -> None:
    if known.num_pairs < 0 or known.num_rows < 1:
        raise ConfigError("--num-pairs: must be at least 0, and --num-rows at least 1")
    if not config.train_data and not config.valid_data:
        raise ConfigError("--train-data: is empty, and so is --valid-data; name at least one file")


if __name__ == "__main__":
    main()
