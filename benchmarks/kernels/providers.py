"""All providers by name, for a case of either kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.kernels import mix_providers, pair_providers
from benchmarks.kernels.mix_case import MixCase
from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.step import Step

Case = PairCase | MixCase


def providers_of(case: Case) -> Mapping[str, Callable[..., Step]]:
    """The providers for a case of its kind."""
    return pair_providers.PROVIDERS if isinstance(case, PairCase) else mix_providers.PROVIDERS
