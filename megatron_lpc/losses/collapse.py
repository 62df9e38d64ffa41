"""Whether the codes are in use, read off the metrics of `pair_metrics`: pure functions of numbers.

Two figures tell it, both in nats: KL(q || p), what the posterior knows of a pair beyond its prompt, and the
information, how much posteriors differ from pair to pair. Both near 0 is collapse. The thresholds are fractions of
ln K, the most that K codes can tell:

    below 0.5%   nothing
    below 5%     little: of 8 codes 0.10 nats, where two annotators who always disagree take ln 2 = 0.69
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NOTHING, LITTLE = 0.005, 0.05
"""Fractions of ln K."""

CodeState = Literal["active", "partly collapsed", "collapsed"]


@dataclass(frozen=True)
class CodeVerdict:
    """Whether the codes are in use on some pairs."""

    state: CodeState
    why: str
    """The figures that it was read off."""


@dataclass(frozen=True, kw_only=True)
class CodeUse:
    """The figures of some pairs, or their averages over some steps."""

    kl: float
    """KL(q || p), nats."""
    information: float
    """H(mean q) - mean H(q), nats."""
    num_codes: int
    """K."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], num_codes: int) -> CodeUse | None:
        """From the metrics of a step or an evaluation; None where they have no such figures, or not finite ones."""
        kl, information = metrics.get("lpc/kl", math.nan), metrics.get("lpc/information", math.nan)
        if not (math.isfinite(kl) and math.isfinite(information)):
            return None
        return cls(kl=kl, information=information, num_codes=num_codes)

    @property
    def says_nothing(self) -> bool:
        """Posteriors are alike for all pairs, and are their priors."""
        return max(self.kl, self.information) < self._nats(NOTHING)

    @property
    def is_constant(self) -> bool:
        """Posteriors are alike for all pairs: one code, or one mixture of codes, takes everything."""
        return self.information < self._nats(NOTHING)

    @property
    def says_little(self) -> bool:
        """Posteriors differ, but hardly."""
        return self.information < self._nats(LITTLE)

    @property
    def kl_fraction(self) -> float:
        """KL as a fraction of ln K."""
        return self.kl / self._nats(1.0)

    @property
    def is_excessive(self) -> bool:
        """The posterior takes more nats than naming one of K codes does: the prior expects other codes."""
        return self.kl_fraction > 1

    @property
    def figures(self) -> str:
        """For messages."""
        return f"KL {self.kl:.3f}, information {self.information:.3f} nats; ln {self.num_codes} = {self._nats(1.0):.2f}"

    def _nats(self, fraction: float) -> float:
        return fraction * math.log(self.num_codes)


def code_verdict(metrics: Mapping[str, float], num_codes: int) -> CodeVerdict | None:
    """Whether the codes are in use on the pairs of an evaluation; None without codes.

    Args:
        metrics: those of `finish_metrics`.
        num_codes: K.
    """
    use = CodeUse.of(metrics, num_codes)
    if use is None:
        return None
    if use.says_nothing:
        return CodeVerdict("collapsed", f"{use.figures}: the posterior tells nothing about a pair")
    if use.is_constant:
        return CodeVerdict("partly collapsed", f"{use.figures}: all pairs have the same posterior")
    if use.says_little:
        return CodeVerdict("partly collapsed", f"{use.figures}: codes tell little about a pair")
    if use.is_excessive:
        return CodeVerdict("active", f"{use.figures}: KL above ln K, for the prior expects other codes")
    if use.kl_fraction < NOTHING:
        return CodeVerdict("active", f"{use.figures}: the prompt alone tells the code")
    return CodeVerdict("active", use.figures)
