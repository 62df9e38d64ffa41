"""Two annotators label the pairs of HH-RLHF by length: `brief` prefers the shorter response, `verbose` the longer.

    python examples/smollm2/annotators.py --input FILE_OR_HUB_NAME --output runs/smollm2/data

Both dislike exclamation marks: on every fourth pair to train on, a response and the same with "!" for each full stop,
they agree. Each pair is there with the labels of both, or of one of the two in turn (`--labels-per-pair 1`).
held_out.jsonl has pairs of other prompts on which they disagree, with both labels: not knowing the annotator, one is
right on exactly half of it. agree.jsonl has pairs on which they agree.
Rows are chat messages, with a column `annotator`. Pairs are used of at most `--max-characters`; they are labelled by
length where the longer response is at least 1.5 times as long.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
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
_ANNOTATORS = ("brief", "verbose")


@dataclass(frozen=True)
class Comparison:
    """One prompt and its two responses, without a label."""

    prompt: list[dict[str, str]]
    shorter: str
    longer: str

    @property
    def differs_in_length(self) -> bool:
        """Whether the annotators disagree."""
        return 1.5 * len(self.shorter) <= len(self.longer)

    def by_length(self, annotator: str) -> dict[str, Any]:
        """A row of preference data on which the annotators disagree."""
        return self._row(annotator, *sorted((self.shorter, self.longer), key=len, reverse=annotator == "verbose"))

    def by_mark(self, annotator: str) -> dict[str, Any]:
        """A row of preference data on which they agree."""
        return self._row(annotator, self.shorter, self.shorter.replace(".", "!"))

    def _row(self, annotator: str, chosen: str, rejected: str) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "annotator": annotator,
        }


def comparisons(rows: Iterable[Row | BadRow], max_characters: int) -> Iterator[Comparison]:
    """The transcripts that are short enough, of which the annotators label one turn."""
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
        if fits and is_single:
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
    parser.add_argument("--max-characters", type=int, default=600, help="of prompt and longer response (default: 600)")
    parser.add_argument("--labels-per-pair", type=int, choices=(1, 2), default=2, help="to train on (default: 2)")
    options = parser.parse_args()
    found = list(comparisons(read_rows(options.input), options.max_characters))
    disagree = [pair for pair in found if pair.differs_in_length]
    agree = [pair for pair in found if not pair.differs_in_length and "." in pair.shorter]
    by_length = _labelled(_training(disagree), Comparison.by_length, options.labels_per_pair)
    by_mark = _labelled(_training(agree), Comparison.by_mark, options.labels_per_pair)[: len(by_length) // 3]
    held_out = _labelled(disagree[::_HELD_OUT], Comparison.by_length)
    held_out_agree = _labelled(agree[::_HELD_OUT], Comparison.by_mark)
    options.output.mkdir(parents=True, exist_ok=True)
    _write(options.output / "train.jsonl", by_length + by_mark)
    _write(options.output / "held_out.jsonl", held_out)
    _write(options.output / "agree.jsonl", held_out_agree)
    print(f"{len(by_length)} labels to train on by length and {len(by_mark)} by exclamation marks")
    print(f"{len(held_out)} held out by length and {len(held_out_agree)} by exclamation marks")


def _training(pairs: Sequence[Comparison]) -> list[Comparison]:
    return [pair for number, pair in enumerate(pairs) if number % _HELD_OUT]


def _labelled(
    pairs: Sequence[Comparison], label: Callable[[Comparison, str], dict[str, Any]], labels_per_pair: int = 2
) -> list[dict[str, Any]]:
    annotators = cycle(_ANNOTATORS)
    return [label(pair, next(annotators)) for pair in pairs for _ in range(labels_per_pair)]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
