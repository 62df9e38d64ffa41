"""Each code by the pairs that have it: where they come from, what marks them, what the code does to the vocabulary."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.evaluation.report.phrases import Marks, PhraseCounts
from megatron_lpc.evaluation.report.scored_pairs import ScoredPairs
from megatron_lpc.evaluation.report.switching import code_margins
from megatron_lpc.terminal import progress

MOST_PAIRS = 20_000
"""Pairs whose phrases are counted, at most."""
ENTRIES = 12
"""Vocabulary entries in each list."""
LONGEST = 600
"""Characters of a text on the page; of a longer one its two ends."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A vocabulary entry whose logit a code changes."""

    text: str
    logit: float
    """z W^T, less its mean over the entries that occur; such a constant changes no probability."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A pair whose posterior is for the code."""

    prompt: str
    chosen: str
    rejected: str
    group: str | None
    source: str | None
    margin: float
    """Reward of chosen minus reward of rejected under the code."""
    margin_elsewhere: float
    """The same on average under the other active codes; 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """One code that is the posterior's most probable one of some pair."""

    code: int
    pairs: int
    """Pairs whose most probable code it is."""
    weight: float
    """Its mean posterior weight over all pairs."""
    groups: dict[str, int]
    """Those pairs by group, most first; empty without groups."""
    longer: float
    """Tokens by which their chosen responses are longer than the rejected ones, on average."""
    marks: Marks
    raised: list[Entry]
    lowered: list[Entry]
    examples: list[Example]


def active_codes(scored: ScoredPairs) -> list[int]:
    """The codes that are the most probable one of some pair, those of most pairs first."""
    counts = Counter(scored.codes.tolist())
    return [code for code, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))]


def portraits(scored: ScoredPairs, examples: int) -> list[Portrait]:
    """Of each active code, in the order of `active_codes`."""
    codes = active_codes(scored)
    marks = _count_phrases(scored).marks(codes)
    margins = code_margins(scored.config.loss, scored.table)[:, codes]
    vocabulary = _vocabulary(scored)
    return [
        _portrait(scored, code, marks[code], _Margins(margins, place), vocabulary, examples)
        for place, code in enumerate(codes)
    ]


def _count_phrases(scored: ScoredPairs) -> PhraseCounts:
    counts, codes = PhraseCounts(), scored.codes.tolist()
    places = random.Random(SEED).sample(range(len(codes)), min(MOST_PAIRS, len(codes)))
    for place in progress(sorted(places), "Counting phrases", unit="pairs"):
        counts.add(codes[place], *_texts(scored, place))
    return counts


def _texts(scored: ScoredPairs, place: int) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of a pair, without special tokens."""
    pair = scored.pair(place)
    decode = scored.tokenizer.decode
    prompt, chosen, rejected = (decode([int(i) for i in ids]) for ids in (pair.prompt, pair.chosen, pair.rejected))
    return prompt, chosen, rejected


@dataclass(frozen=True)
class _Margins:
    """Margins [P, A] of all pairs under the active codes, one of which is meant."""

    of_active: Tensor
    own: int

    def at(self, place: int) -> tuple[float, float]:
        """Under the code itself, and the mean under the others."""
        own = self.of_active[place, self.own]
        others = (self.of_active[place].sum() - own) / max(1, self.of_active.size(1) - 1)
        return float(own), float(others)


def _portrait(
    scored: ScoredPairs, code: int, marks: Marks, margins: _Margins, vocabulary: Tensor, examples: int
) -> Portrait:
    has_code = scored.codes == code
    lengths = scored.table.response_length[has_code]
    groups: Counter[str] = Counter()
    if scored.support is not None:
        groups.update(scored.support.groups[place] for place in has_code.nonzero()[:, 0].tolist())
    raised, lowered = _entries(scored, code, vocabulary)
    return Portrait(
        code=code,
        pairs=int(has_code.sum()),
        weight=float(scored.table.posterior_logits.softmax(-1)[:, code].mean()),
        groups=dict(sorted(groups.items(), key=lambda entry: (-entry[1], entry[0]))),
        longer=float((lengths[:, 0] - lengths[:, 1]).mean()),
        marks=marks,
        raised=raised,
        lowered=lowered,
        examples=[_example(scored, place, margins) for place in _typical(scored, code, examples)],
    )


def _vocabulary(scored: ScoredPairs) -> Tensor:
    """[E] token ids that occur in some response: what a code does to others was not learned from these pairs."""
    counts = torch.zeros(scored.code_logits.size(1), dtype=torch.bool)
    for place in range(len(scored.table)):
        pair = scored.pair(place)
        for response in (pair.chosen, pair.rejected):
            counts[torch.as_tensor(np.asarray(response, np.int64))] = True
    return counts.nonzero()[:, 0]


def _entries(scored: ScoredPairs, code: int, vocabulary: Tensor) -> tuple[list[Entry], list[Entry]]:
    """The vocabulary entries, of these, that a code raises and lowers most."""
    logits = scored.code_logits[code, vocabulary]
    logits = logits - logits.mean()
    order = logits.argsort(descending=True, stable=True)
    texts = [_entry_text(scored.tokenizer, token) for token in vocabulary[order].tolist()]
    ordered = [Entry(text=text, logit=logit) for text, logit in zip(texts, logits[order].tolist(), strict=True)]
    return ordered[:ENTRIES], ordered[: -ENTRIES - 1 : -1]


def _entry_text(tokenizer: Tokenizer, token: int) -> str:
    text = tokenizer.decode([token], show_special=True)
    return f"token {token}" if "\ufffd" in text else text  # A part of a character.


def _typical(scored: ScoredPairs, code: int, count: int) -> list[int]:
    """Pairs of different prompts that have the code, those first whose posterior is most for it."""
    logits = scored.table.posterior_logits
    two = logits.topk(2).values
    lead = torch.where(scored.codes == code, two[:, 0] - two[:, 1], -torch.inf)
    found: dict[int, int] = {}
    for place in lead.argsort(descending=True, stable=True).tolist():
        if len(found) == count or lead[place] == -torch.inf:
            break
        found.setdefault(int(scored.prompts[place]), place)
    return list(found.values())


def _example(scored: ScoredPairs, place: int, margins: _Margins) -> Example:
    prompt, chosen, rejected = map(_shortened, _texts(scored, place))
    margin, elsewhere = margins.at(place)
    return Example(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        group=None if scored.support is None else scored.support.groups[place],
        source=None if scored.sources is None else scored.sources.names[place],
        margin=margin,
        margin_elsewhere=elsewhere,
    )


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"
