"""How responses differ from latent to latent: length with its interval, and simple counts of style.

Responses to the same prompts are paired, so that differences between prompts cancel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.table import Table

from megatron_lpc.generation.respond import Response
from megatron_lpc.study.intervals import Estimate, mean_interval, paired_interval

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_REFUSAL = re.compile(
    r"\b(?:i['’]m sorry|i am sorry|i apologi[sz]e|i (?:can['’]?t|cannot|can not|won['’]t|will not)\b"
    r"|i['’]m (?:not able|unable)|i am (?:not able|unable)|as an ai\b)",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_OPENING = 200
"""Characters in which a refusal begins."""


def type_token_ratio(text: str) -> float:
    """Distinct word forms over all of them, 1 where none occurs twice; longer texts repeat more. 0 for none at all."""
    found = [word.lower() for word in _WORD.findall(text)]
    return len(set(found)) / len(found) if found else 0.0


def asks(text: str) -> bool:
    """Whether there is a question mark."""
    return "?" in text


def refuses(text: str) -> bool:
    """Whether it begins with an apology or a refusal in English."""
    return bool(_REFUSAL.search(text[:_OPENING]))


def lists(text: str) -> bool:
    """Whether two lines or more begin as items of a list."""
    return len(_LIST_ITEM.findall(text)) >= 2


def style_table(responses: Mapping[str, Sequence[Response]]) -> Table:
    """One line per latent; others than the first also show the paired difference of their length from the first.

    Args:
        responses: name of a latent -> responses to the same prompts.
    """
    first = next(iter(responses))
    table = Table("latent", title=_title(responses), title_justify="left")
    headings = ["tokens", f"against {first}", "cut", "type-token ratio", "questions", "refusals", "lists"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, of_latent in responses.items():
        lengths = _lengths(of_latent)
        difference = None if name == first else paired_interval(lengths, _lengths(responses[first]))
        texts = [response.text for response in of_latent]
        table.add_row(
            name,
            _shown(mean_interval(list(lengths.values()))),
            "" if difference is None else _shown(difference, sign="+"),
            f"{fmean(response.is_cut for response in of_latent):.0%}",
            f"{fmean(map(type_token_ratio, texts)):.2f}",
            *(f"{fmean(map(has, texts)):.0%}" for has in (asks, refuses, lists)),
        )
    return table


def _title(responses: Mapping[str, Sequence[Response]]) -> str:
    count = len(next(iter(responses.values())))
    return f"Responses to {count} prompts: mean tokens ± 95% interval over prompts, and shares of responses"


def _lengths(responses: Sequence[Response]) -> dict[int, float]:
    """Number of the prompt -> tokens."""
    return {number: float(response.num_tokens) for number, response in enumerate(responses)}


def _shown(estimate: Estimate, sign: str = "") -> str:
    interval = "" if estimate.half_width is None else f" ± {estimate.half_width:.1f}"
    return f"{estimate.mean:{sign}.1f}{interval}"
