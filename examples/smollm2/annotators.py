"""Two annotators label the pairs of HH-RLHF by length: `brief` prefers the shorter response, `verbose` the longer.

    python examples/smollm2/annotators.py --input FILE_OR_HUB_NAME --output runs/smollm2/data

Writes train.jsonl, where each pair has one of the two labels in turn, and held_out.jsonl, where each pair is there once
with each: without knowing the annotator, one is right on exactly half of it. Rows are chat messages, with a column
`annotator`. Pairs are used whose longer response is at least 1.5 times as long, in at most `--max-characters`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Row, read_rows
from megatron_lpc.files import write_text

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_HELD_OUT = 10
"""Every tenth pair is held out."""


@dataclass(frozen=True)
class Comparison:
    """One prompt and its two responses, without a label."""

    prompt: list[dict[str, str]]
    shorter: str
    longer: str

    def labelled(self, annotator: str) -> dict[str, Any]:
        """A row of preference data."""
        chosen, rejected = (self.shorter, self.longer) if annotator == "brief" else (self.longer, self.shorter)
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "annotator": annotator,
        }


def comparisons(rows: Iterable[Row | BadRow], max_characters: int) -> Iterator[Comparison]:
    """The transcripts whose responses differ enough in length."""
    for row in rows:
        try:
            pair = to_pair(row, DataConfig()) if isinstance(row, Row) else None
        except BadRow:
            pair = None
        if pair is None or not isinstance(pair.prompt, str):
            continue
        shorter, longer = sorted((str(pair.chosen).strip(), str(pair.rejected).strip()), key=len)
        fits = len(pair.prompt) + len(longer) <= max_characters
        is_single = not _TURN.search(longer) and not _TURN.search(shorter)
        if fits and is_single and 1.5 * len(shorter) <= len(longer):
            yield Comparison(_messages(pair.prompt), shorter, longer)


def _messages(transcript: str) -> list[dict[str, str]]:
    """The turns of a transcript that ends with the opening of the assistant's."""
    _, *parts = _TURN.split(transcript)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[speaker], "content": text.strip()} for speaker, text in turns][:-1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", required=True, help="file or Hub name")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--max-characters", type=int, default=400, help="of prompt and longer response (default: 400)")
    options = parser.parse_args()
    found = list(comparisons(read_rows(options.input), options.max_characters))
    train = [pair for number, pair in enumerate(found) if number % _HELD_OUT]
    held_out = found[::_HELD_OUT]
    options.output.mkdir(parents=True, exist_ok=True)
    names = ("brief", "verbose")
    _write(options.output / "train.jsonl", [pair.labelled(names[number % 2]) for number, pair in enumerate(train)])
    _write(options.output / "held_out.jsonl", [pair.labelled(name) for pair in held_out for name in names])
    print(f"{len(train)} pairs to train on, {len(held_out)} held out with either label")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
