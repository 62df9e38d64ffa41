"""What accuracy can be had at most on pairs that several annotators label, without codes and with two.

    python examples/recovery/at_most.py --data NAME=FILE.jsonl ... --output report.json

Writes a report as `megatron_lpc.evaluate` does: `prior` is who does not know the annotator; `support` and
`support_exact` are two codes that choose as two of the annotators do, where each annotator is given the better one.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_lpc.files import write_json

Labels = dict[str, str]
"""Annotator -> the response that they chose."""


def read_labels(path: Path, group_column: str) -> list[Labels]:
    """Who chose what, for each prompt with its two responses, from JSON lines of pairs."""
    labelled: dict[str, Labels] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        chosen, rejected = json.dumps(pair["chosen"]), json.dumps(pair["rejected"])
        labelled[json.dumps([pair["prompt"], *sorted((chosen, rejected))])][pair[group_column]] = chosen
    return list(labelled.values())


def without_codes(labelled: Sequence[Labels]) -> float:
    """Highest accuracy of whoever does not know the annotator: what most of them choose, pair by pair."""
    right = sum(max(Counter(chosen.values()).values()) for chosen in labelled)
    return right / sum(map(len, labelled))


def with_two_codes(labelled: Sequence[Labels]) -> float:
    """Accuracy of two codes that choose as two of the annotators do, where each annotator is given the better code."""
    annotators = sorted(set().union(*labelled))
    alike = {
        (one, other): sum(one in chosen and chosen.get(one) == chosen.get(other) for chosen in labelled)
        for one, other in itertools.product(annotators, repeat=2)
    }
    best = max(
        sum(max(alike[code, annotator] for code in codes) for annotator in annotators)
        for codes in itertools.combinations(annotators, 2)
    )
    return best / (len(annotators) * len(labelled))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=FILE", help="validation sets: JSON lines")
    parser.add_argument("--group-column", default="annotator", metavar="NAME", help="the annotator's (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="the report")
    arguments = parser.parse_args()
    sets = (data.partition("=") for data in arguments.data)
    reports = {name: _report(read_labels(Path(file), arguments.group_column)) for name, _, file in sets}
    write_json(arguments.output, {"data": reports})


def _report(labelled: Sequence[Labels]) -> dict[str, Any]:
    known = with_two_codes(labelled)
    accuracy = {"prior": without_codes(labelled), "support": known, "support_exact": known}
    return {
        "metrics": {"prior": {"rewards/accuracies": accuracy["prior"]}},
        "support": {"accuracy": accuracy},
    }


if __name__ == "__main__":
    main()
