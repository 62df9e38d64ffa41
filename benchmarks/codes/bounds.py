"""What accuracy can be had on pairs that several annotators label, without codes and with two."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

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
