"""What `verify` found: the differences of two models, the bound below which they agree, and both as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from rich.table import Table
from torch import Tensor

from megatron_lpc.command_line import first_few

_ROUNDING = {torch.bfloat16: 4e-2, torch.float16: 5e-3}
"""Dtype of weights -> relative difference that rounding them makes: about five units in the last place."""
_ROUNDING_OF_ARITHMETIC = 1e-5
"""Relative difference of two fp32 computations of the same logits: about eighty units in the last place."""


@dataclass(frozen=True)
class Difference:
    """Of two tensors, in fp32."""

    absolute: float
    """Largest absolute difference of two elements."""
    scale: float
    """Largest absolute value in either."""

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> Difference:
        """The difference of two fp32 tensors of the same shape."""
        scale = max(float(one.abs().max()), float(other.abs().max()))
        return cls(float((one - other).abs().max()), scale)

    @property
    def relative(self) -> float:
        """`absolute` as a share of the largest value, whatever the model's logits are like; 0 for equal tensors."""
        return self.absolute / self.scale if self.absolute else 0.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences of two models."""

    tensors: Mapping[str, Difference]
    """Hugging Face's name of a tensor -> difference, for the tensors that both models have."""
    one_sided: list[str] = field(default_factory=list)
    """Tensors that only one of the two has."""
    options: list[str] = field(default_factory=list)
    """Flags of the options of the model in which the two differ."""
    logits: list[tuple[int, Difference]] = field(default_factory=list)
    """Number of tokens and difference, for each text."""
    token_source: str = "real text"
    """What the compared tokens are: real text, or random token ids."""
    dtypes: frozenset[torch.dtype] = frozenset({torch.float32})
    """In which dtypes the two store their weights, without those that both use."""

    @property
    def rounding(self) -> float:
        """The relative difference that rounding explains.

        Two models in the same dtype may differ by the rounding of fp32 arithmetic; one that was written in another
        dtype also by the rounding of its weights to the coarser of the two.
        """
        return max([_ROUNDING_OF_ARITHMETIC, *(_ROUNDING.get(dtype, 0.0) for dtype in self.dtypes)])

    @property
    def is_same_model(self) -> bool:
        """Whether all tensors are equal to the bit and all options are equal."""
        equal = all(difference.absolute == 0 for difference in self.tensors.values())
        return equal and not self.one_sided and not self.options

    def agrees(self, tolerance: float | None = None) -> bool:
        """Whether the two are the same model, or differ by no more than the tolerance.

        Args:
            tolerance: largest relative difference of a tensor or of a text's logits; `rounding` when unset.
        """
        return self.is_same_model or not self.disagreements(tolerance)

    def disagreements(self, tolerance: float | None = None) -> list[str]:
        """One phrase for each difference above the tolerance."""
        bound = self.rounding if tolerance is None else tolerance
        found = [f"{name} is in one only" for name in self.one_sided]
        found += [f"{flag} differs" for flag in self.options]
        named = [*self.tensors.items(), *((f"logits of {length} tokens", each) for length, each in self.logits)]
        for name, difference in named:
            # Not `>`: a NaN is a disagreement.
            if not difference.relative <= bound:
                found.append(f"{name} by {difference.absolute:.3g} (relative {difference.relative:.3g})")
        return found

    def verdict(self, tolerance: float | None = None) -> str:
        """One sentence: what the comparison means."""
        bound = self.rounding if tolerance is None else tolerance
        disagreements = self.disagreements(tolerance)
        if not self.is_same_model:
            if not disagreements:
                return f"They agree: no relative difference is above {bound:g}."
            return f"more than the relative difference {bound:g}: {first_few(disagreements, 'differences')}"
        same = f"The same model: all {len(self.tensors)} tensors are equal to the bit, and so are the options."
        if not disagreements:
            return f"{same} Logits differ by rounding only (relative bound {bound:g})."
        return f"{same} But rounding does not explain the logits: {first_few(disagreements, 'differences')}."


def comparison_table(comparison: Comparison, rows: int = 10) -> Table:
    """The tensors that differ most, and the logits of every text.

    Args:
        rows: how many differing tensors have a row of their own.
    """
    table = Table(title=f"Largest differences (logits of {comparison.token_source})", title_justify="left")
    table.add_column("tensor or text")
    for heading in ("absolute", "relative", "tensors"):
        table.add_column(heading, justify="right")
    worst_first = sorted(comparison.tensors.items(), key=lambda item: -item[1].relative)
    differing = [item for item in worst_first if item[1].absolute != 0]
    for name, difference in differing[:rows]:
        table.add_row(name, *_figures(difference))
    rest = differing[rows:]
    if rest:
        table.add_row("others that differ", "", f"at most {rest[0][1].relative:.3g}", str(len(rest)))
    table.add_row("equal to the bit", "0", "0", str(len(worst_first) - len(differing)))
    for name in comparison.one_sided:
        table.add_row(name, "in one only")
    for flag in comparison.options:
        table.add_row(flag, "differs")
    for length, difference in comparison.logits:
        table.add_row(f"logits of {length} tokens", *_figures(difference))
    return table


def _figures(difference: Difference) -> tuple[str, str]:
    return f"{difference.absolute:.3g}", f"{difference.relative:.3g}"
