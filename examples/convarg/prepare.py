"""Votes on arguments as preference pairs, split by topic: nothing that is debated in one part is debated in another.

    python examples/convarg/prepare.py --input UKPConvArg1-full-XML --output runs/convarg/data

Reads the folder UKPConvArg1-full-XML of github.com/UKPLab/acl2016-convincing-arguments. Writes one row per strict vote
(a1 or a2) into train.jsonl, valid.jsonl and test.jsonl: prompt (the debate and the side to take), chosen, rejected,
`worker`, `debate`, and the names of the two arguments. The topics, in an order drawn with `--seed`, are dealt out into
`--folds`; fold `--fold` is for the test, one topic of the next fold for validation, all others are for training.

all.jsonl has rows of no worker in which each argument stands once, or twice where a debate has an odd number of them:
they tell what a model says of each argument, and so of any pair.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from examples.convarg.argument_pairs import Argument, ArgumentPair, read_folder
from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.files import write_text

PARTS = ("train", "valid", "test")


def rows(pair: ArgumentPair) -> Iterator[dict[str, Any]]:
    """A row for each strict vote on a pair; none where the two arguments are the same text under two names."""
    first, second = pair.arguments
    if first.text == second.text:
        return
    for worker, vote in pair.votes:
        if vote != "equal":
            yield _row(pair, *((first, second) if vote == "a1" else (second, first))) | {"worker": worker}


def cover(pairs: Iterable[ArgumentPair]) -> Iterator[dict[str, Any]]:
    """Rows in which each argument of each debate stands, in as few as possible; their labels mean nothing."""
    of_debates: dict[str, tuple[ArgumentPair, dict[str, Argument]]] = {}
    for pair in pairs:
        _, arguments = of_debates.setdefault(pair.debate, (pair, {}))
        arguments |= {argument.name: argument for argument in pair.arguments}
    for pair, arguments in of_debates.values():
        # Equal texts are neighbours here, and no pair is of neighbours; of an odd number the first one stands twice.
        listed = sorted(arguments.values(), key=lambda argument: argument.text)
        half = (len(listed) + 1) // 2
        opposite = (listed + listed)[half:]
        yield from (_row(pair, *both) | {"worker": "none"} for both in zip(listed[:half], opposite, strict=False))


def _row(pair: ArgumentPair, chosen: Argument, rejected: Argument) -> dict[str, Any]:
    return {
        "prompt": f"Debate: {pair.topic}\nA convincing argument for this side: {pair.stance}\n\n",
        "chosen": chosen.text,
        "rejected": rejected.text,
        "debate": pair.debate,
        "chosen_argument": chosen.name,
        "rejected_argument": rejected.name,
    }


def part_of_topics(topics: Sequence[str], folds: int, fold: int, seed: int) -> dict[str, str]:
    """Topic -> `train`, `valid` or `test`."""
    order = sorted(topics)
    random.Random(seed).shuffle(order)
    parts = {topic: "test" if place % folds == fold else "train" for place, topic in enumerate(order)}
    parts[order[(fold + 1) % folds]] = "valid"
    return parts


def prepare(pairs: Sequence[ArgumentPair], parts: dict[str, str], output: Path) -> None:
    """Write the files, and say what is in them and what is left out."""
    of_parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for pair in pairs:
        of_parts[parts[pair.topic]] += rows(pair)
    for name, part_rows in (of_parts | {"all": list(cover(pairs))}).items():
        write_text(output / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part_rows))
    for part, part_rows in of_parts.items():
        workers, debates = ({row[column] for row in part_rows} for column in ("worker", "debate"))
        print(f"{part}: {len(part_rows):,} votes of {len(workers):,} workers on {len(debates)} debates")
    dropped = Counter(vote for pair in pairs for _, vote in pair.votes)["equal"]
    same = sum(len(pair.votes) for pair in pairs if pair.arguments[0].text == pair.arguments[1].text)
    print(f"left out: {dropped:,} votes that call both arguments equal, and {same:,} on arguments of the same text")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when the folder cannot be read or split."""
    with reports_errors():
        parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--input", type=Path, required=True, help="folder UKPConvArg1-full-XML")
        parser.add_argument("--output", type=Path, required=True, help="folder to write")
        parser.add_argument("--folds", type=int, default=4, help="parts into which the topics are dealt (4)")
        parser.add_argument("--fold", type=int, default=0, help="the one for the test (0)")
        parser.add_argument("--seed", type=int, default=0, help="of the order of the topics (0)")
        options = parser.parse_args(argv)
        pairs = read_folder(options.input)
        topics = sorted({pair.topic for pair in pairs})
        if not 2 <= options.folds < len(topics):
            raise UserError(f"--folds {options.folds}: must be from 2 to {len(topics) - 1}, for {len(topics)} topics")
        if not 0 <= options.fold < options.folds:
            raise UserError(f"--fold {options.fold}: must be from 0 to {options.folds - 1}")
        prepare(pairs, part_of_topics(topics, options.folds, options.fold, options.seed), options.output)


if __name__ == "__main__":
    main()
