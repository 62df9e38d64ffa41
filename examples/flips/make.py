"""Give pairs two annotators: one keeps their labels, one exchanges chosen and rejected on a share of the prompts.

    python examples/flips/make.py --input pairs/train.jsonl pairs/test.jsonl --share 0.3 --output data/flipped

Reads pairs as `--train-data` does: any file, folder or name of the Hub, transcripts of HH-RLHF too. Writes a file of
JSON lines for each, of its name: each pair once for the annotator `true` and once for `flips`. All pairs of a prompt
are flipped, or none. With --mark, [FLIP] stands before the prompts (of chats: before the first message of the user) of
pairs whose labels are flipped. Columns: prompt, chosen, rejected, annotator, flipped.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors, warn
from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.columns import Content
from megatron_lpc.data.pairs import Pair, to_pair
from megatron_lpc.data.source import BadRow, read_rows
from megatron_lpc.files import write_text

MARK = "[FLIP] "
TRANSCRIPT = "\n\nHuman: "
"""Opens a transcript of HH-RLHF; the mark goes behind it."""


def flipped_prompts(prompts: list[str], share: float, seed: int) -> set[str]:
    """A share of the different prompts; the same ones whatever their order, and more of them for a greater share."""
    different = sorted(set(prompts))
    random.Random(f"{seed}/flips").shuffle(different)
    return set(different[: round(share * len(different))])


def labelled(pairs: list[Pair], *, share: float, mark: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of both annotators, pair by pair."""
    prompts = [json.dumps(pair.prompt) for pair in pairs]
    flipped = flipped_prompts(prompts, share, seed)
    for prompt, pair in zip(prompts, pairs, strict=True):
        for annotator in ("true", "flips"):
            flips = annotator == "flips" and prompt in flipped
            chosen, rejected = (pair.rejected, pair.chosen) if flips else (pair.chosen, pair.rejected)
            yield {
                "prompt": _marked(pair.prompt) if flips and mark else pair.prompt,
                "chosen": chosen,
                "rejected": rejected,
                "annotator": annotator,
                "flipped": flips,
            }


def _marked(prompt: Content) -> Content:
    if isinstance(prompt, str):
        opening = TRANSCRIPT if prompt.startswith(TRANSCRIPT) else ""
        return opening + MARK + prompt.removeprefix(opening)
    first = next((place for place, message in enumerate(prompt) if message["role"] == "user"), None)
    if first is None:
        raise UserError("--mark: a chat has no message of the user to put [FLIP] before")
    marked = prompt[first] | {"content": MARK + prompt[first]["content"]}
    return [*prompt[:first], marked, *prompt[first + 1 :]]


def read_pairs(source: str) -> list[Pair]:
    """The pairs of a source; a row that is none, or whose columns would be lost, is left out with a warning.

    Raises:
        UserError: the source cannot be read, or holds no pair.
    """
    pairs, bad = [], []
    try:
        for row in read_rows(source):
            try:
                pair = to_pair(row, DataConfig())
                if pair.template_arguments:
                    raise pair.location.bad_row("variables of a chat template would be lost", "Remove the row")
                pairs.append(pair)
            except BadRow as error:
                bad.append(str(error))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"--input: {error}") from None
    if not pairs:
        raise UserError(f"--input {source}: no row is a pair" + (f"; the first: {bad[0]}" if bad else ""))
    if bad:
        warn(f"{len(bad)} rows are left out; the first: {bad[0]}")
    return pairs


def main(arguments: list[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the input cannot be read."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="files, folders or Hub names")
    parser.add_argument("--output", type=Path, required=True, help="folder; files of the same names are replaced")
    parser.add_argument("--share", type=float, required=True, help="of the prompts, 0 to 1")
    parser.add_argument("--mark", action="store_true", help="put [FLIP] into prompts whose labels are flipped")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts (%(default)s)")
    with reports_errors():
        options = parser.parse_args(arguments)
        if not 0 <= options.share <= 1:
            raise UserError(f"--share must be 0 to 1, not {options.share}")
        outputs = [options.output / f"{Path(source).name.partition('.')[0]}.jsonl" for source in options.input]
        if len(set(outputs)) < len(outputs):
            raise UserError("--input: two have the same name, and so would what is written; give them one by one")
        for source, output in zip(options.input, outputs, strict=True):
            pairs = read_pairs(source)
            rows = list(labelled(pairs, share=options.share, mark=options.mark, seed=options.seed))
            write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            print(f"{len(rows)} pairs in {output}, {sum(row['flipped'] for row in rows)} of them flipped")


if __name__ == "__main__":
    main()
