"""The phrases that mark the pairs of a code: in their prompts, and in what was preferred."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megatron_lpc.evaluation.report.log_odds import Counts, LogOdds, least_z

LEAST_TEXTS = 5
"""Phrases in fewer texts are left out."""
MOST_PHRASES = 50_000
"""Phrases that are compared, at most: those in most texts."""
SHOWN = 12
"""Phrases that a list holds, at most."""
# Chinese and Japanese put no spaces between them; there each character is taken by itself.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)*")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A phrase that marks the pairs of a code."""

    phrase: str
    z: float
    """Its log-odds ratio in standard deviations."""
    texts: int
    """Texts of the code's pairs that have it; where it is preferred or avoided, responses that have it while the other
    response of the pair has not."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What marks the pairs of one code against those of the other codes."""

    prompts: list[Mark]
    preferred: list[Mark]
    """In chosen responses and not in rejected ones, more than among the pairs of other codes."""
    avoided: list[Mark]
    """The other way round."""


def phrases_of(text: str) -> set[str]:
    """Each word of a text, and each two that follow each other, in lower case."""
    found = _WORD.findall(text.lower())
    return {*found, *(f"{one} {next_one}" for one, next_one in pairwise(found))}


@dataclass
class PhraseCounts:
    """In how many texts of each code's pairs each phrase occurs. A text counts once, however often it repeats one."""

    prompts: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    gained: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Chosen responses that have it while the rejected ones have not."""
    lost: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Rejected responses that have it while the chosen ones have not."""

    def add(self, code: int, prompt: str, chosen: str, rejected: str) -> None:
        """Count a pair of a code."""
        of_chosen, of_rejected = phrases_of(chosen), phrases_of(rejected)
        self.prompts[code].update(phrases_of(prompt))
        self.gained[code].update(of_chosen - of_rejected)
        self.lost[code].update(of_rejected - of_chosen)

    def marks(self, codes: Iterable[int]) -> dict[int, Marks]:
        """Of each of these codes. Where there is one code only, its prompts have no marks, and what its pairs prefer is
        not compared with anything.
        """
        codes = list(codes)
        in_prompts, in_changes = _Table.of([self.prompts]), _Table.of([self.gained, self.lost])
        return {code: self._marks(code, len(codes) > 1, in_prompts, in_changes) for code in codes}

    def _marks(self, code: int, has_others: bool, in_prompts: _Table, in_changes: _Table) -> Marks:
        of_prompts: list[Mark] = []
        if has_others and in_prompts:
            own, others = in_prompts.split(self.prompts, code)
            of_prompts = _highest(in_prompts, LogOdds.of(own, others, in_prompts.total).z, own)
        if not in_changes:
            return Marks(prompts=of_prompts, preferred=[], avoided=[])
        (gained, gained_elsewhere), (lost, lost_elsewhere) = (
            in_changes.split(counts, code) for counts in (self.gained, self.lost)
        )
        odds = LogOdds.of(gained, lost, in_changes.total)
        if has_others:
            odds -= LogOdds.of(gained_elsewhere, lost_elsewhere, in_changes.total)
        return Marks(
            prompts=of_prompts,
            preferred=_highest(in_changes, odds.z, gained),
            avoided=_highest(in_changes, -odds.z, lost),
        )


@dataclass(frozen=True)
class _Table:
    """The phrases that are compared."""

    phrases: list[str]
    total: Counts
    """[F] texts of all codes with each."""

    @classmethod
    def of(cls, counters: Iterable[dict[int, Counter[str]]]) -> _Table:
        total: Counter[str] = Counter()
        for of_codes in counters:
            for counts in of_codes.values():
                total.update(counts)
        frequent = [(phrase, count) for phrase, count in total.items() if count >= LEAST_TEXTS]
        # Shorter ones first: of equals that contain one another, the first is listed.
        frequent = sorted(frequent, key=lambda entry: (-entry[1], entry[0].count(" "), entry[0]))[:MOST_PHRASES]
        return cls([phrase for phrase, _ in frequent], np.array([count for _, count in frequent], np.float64))

    def __bool__(self) -> bool:
        """Whether there is anything to compare: the odds of a phrase are against all others."""
        return len(self.phrases) > 1

    def split(self, counters: dict[int, Counter[str]], code: int) -> tuple[Counts, Counts]:
        """[F] counts of one code, and of all others together."""
        own = self._counts(counters.get(code, Counter()))
        everywhere = sum((self._counts(counts) for counts in counters.values()), np.zeros(len(self.phrases)))
        return own, everywhere - own

    def _counts(self, counter: Counter[str]) -> Counts:
        return np.array([counter[phrase] for phrase in self.phrases], np.float64)


def _highest(table: _Table, z: NDArray[np.float64], texts: Counts) -> list[Mark]:
    """The phrases of highest z, as far as they are no accident; of those that contain one another the first."""
    marks: list[Mark] = []
    for place in np.argsort(-z, kind="stable"):
        if z[place] < least_z(len(table.phrases)) or len(marks) == SHOWN:
            break
        phrase = table.phrases[place]
        if not any(_overlap(phrase, mark.phrase) for mark in marks):
            marks.append(Mark(phrase=phrase, z=float(z[place]), texts=int(texts[place])))
    return marks


def _overlap(one: str, other: str) -> bool:
    return f" {one} " in f" {other} " or f" {other} " in f" {one} "
