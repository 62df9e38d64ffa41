"""What the kernels are to reach on a GPU, as data; `summary.py` compares it with what was measured.

Sizes are those of llama-3-8b (H 4096, V 128256) in bf16 with N 8192, on one GPU.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a figure of a table that a part of the run writes."""

    what: str
    gpus: tuple[str, ...]
    """What the name of the GPU contains, in small letters."""
    part: str
    """The figure stands in the file PART.csv, in the row with these cells."""
    row: Row
    column: str
    beside: Row | None = None
    """The figure is divided by that of the row with these cells."""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def bound(self) -> str:
        """As a reader sees it."""
        unit = "times" if self.beside is not None else "of the product" if self.column == "of product" else self.column
        if self.at_most is not None:
            return f"at most {self.at_most:.4g} {unit}"
        return f"at least {self.at_least:.4g} {unit}"

    def is_met(self, figure: float) -> bool:
        """Whether the figure keeps the bound."""
        return (self.at_most is None or figure <= self.at_most) and (self.at_least is None or figure >= self.at_least)

    def figure(self, results: Path) -> float | None:
        """What was measured; None if it was not."""
        value = _cell(results / f"{self.part}.csv", self.row, self.column)
        if self.beside is None or value is None:
            return value
        other = _cell(results / f"{self.part}.csv", self.beside, self.column)
        return value / other if other else None


def _cell(path: Path, row: Row, column: str) -> float | None:
    """The number in the first row that has these cells; None without such a row, or where it is empty."""
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        found = next((line for line in csv.DictReader(file) if row.items() <= line.items()), None)
    text = "" if found is None else found.get(column, "")
    if not text:
        return None
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


_EITHER = ("h200", "h100")
_PAIRWISE = {"model": "llama-3-8b", "N": "8192", "L": "1", "provider": "pairwise"}
_RECOMPUTE = {**_PAIRWISE, "provider": "recompute"}
_MIX = {"B": "16", "K": "64", "H": "4096", "provider": "ours"}

GOALS: tuple[Goal, ...] = (
    Goal(
        what="full pass, one latent, `pairwise`",
        gpus=("h200",),
        part="training",
        row=_PAIRWISE,
        column="ms",
        at_most=34.4,
    ),
    Goal(
        what="full pass, one latent, `recompute`",
        gpus=("h100",),
        part="training",
        row=_RECOMPUTE,
        column="ms",
        at_most=50.4,
    ),
    *(
        Goal(
            what=f"forward of one rank's shard of TP {tp}, nothing communicated",
            gpus=("h200",),
            part="shards-scoring",
            row={**_RECOMPUTE, "tp": tp},
            column="TFLOP/s",
            at_least=775,
        )
        for tp in ("2", "4", "8")
    ),
    *(
        Goal(
            what=f"two latents beside one, `{row['provider']}`",
            gpus=_EITHER,
            part="training",
            row={**row, "L": "2"},
            column="ms",
            beside=row,
            at_most=1.25,
        )
        for row in (_PAIRWISE, _RECOMPUTE)
    ),
    Goal(
        # The share counts 6 N V H: a step that takes as long as 4 N V H and 10% more has 6 / 4.4 of the product's rate.
        what="frozen head, `frozen`, within 10% of 4 N V H at the rate of the product",
        gpus=_EITHER,
        part="training",
        row={**_PAIRWISE, "provider": "frozen"},
        column="of product",
        at_least=6 / 4.4,
    ),
    Goal(
        what="scoring, one latent",
        gpus=_EITHER,
        part="scoring",
        row=_RECOMPUTE,
        column="of product",
        at_least=0.7,
    ),
    Goal(
        what="`gumbel_mix` beside PyTorch's chain",
        gpus=_EITHER,
        part="gumbel-mix",
        row=_MIX,
        column="ms",
        beside={**_MIX, "provider": "pytorch"},
        at_most=0.2,
    ),
)
