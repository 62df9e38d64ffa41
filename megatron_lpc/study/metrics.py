"""Which figures of a report stand in the table.

A metric is a place in the report of `megatron_lpc.evaluate`: keys divided by dots, such as
`data.new.support.accuracy.support`, or a preset of a validation set, such as `support(new)`:

    support, support_exact, prior, marginal    accuracy in percent under this latent. `prior` is the only latent of a
                                               model without codes, and none of one without a latent
    swapped                                    as `support_exact`, by the support sets of the other groups
    accuracy, accuracy_exact                   as `support` and `support_exact`, where there are no codes as `support`,
                                               or else as `prior`: for differences to rows without support
    kl, bits, active_codes                     KL(q || p) in nats; information of codes and groups; codes in use
    loss, margin                               of the objective, as `prior`

In the file, `metrics` is a list of them, or a mapping from their names in the table. A value of the mapping may be a
list of places, the first of which that a report has counts, or `{path: PLACE, scale: 100, digits: 1}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_lpc.config.options import nearest
from megatron_lpc.study.entries import Entry

_OWN = ("metrics.prior", "metrics.none")
"""The latent that needs nothing but the prompt, or none."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure."""

    name: str
    paths: tuple[str, ...]
    """Places in a report; the first that it has counts."""
    scale: float = 1.0
    digits: int = 3
    unit: str = ""
    data: str | None = None
    """The validation set of a preset."""

    @property
    def heading(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def needs_support(self) -> bool:
        """Whether it depends on the number of support pairs."""
        return any(re.search(r"\.support\.(accuracy|groups|query_pairs)", path) for path in self.paths)

    def value(self, report: Mapping[str, Any]) -> float | None:
        """The figure of a report; None where it has no such number."""
        for path in self.paths:
            found = _find(report, path)
            if isinstance(found, int | float):
                return self.scale * found
        return None


def _accuracy(*places: str) -> Metric:
    return Metric(name="", paths=places, scale=100, digits=1, unit="%")


_SUPPORT, _SUPPORT_EXACT = "support.accuracy.support", "support.accuracy.support_exact"
_ACCURACIES = tuple(f"{own}.rewards/accuracies" for own in _OWN)
PRESETS = {
    "support": _accuracy(_SUPPORT),
    "support_exact": _accuracy(_SUPPORT_EXACT),
    "swapped": _accuracy("support.accuracy.swapped"),
    "prior": _accuracy(*_ACCURACIES),
    "marginal": _accuracy("metrics.marginal.rewards/accuracies"),
    "accuracy": _accuracy(_SUPPORT, *_ACCURACIES),
    "accuracy_exact": _accuracy(_SUPPORT_EXACT, _SUPPORT, *_ACCURACIES),
    "kl": Metric(name="", paths=("metrics.prior.lpc/kl",), digits=2, unit="nats"),
    "bits": Metric(name="", paths=("information.bits",), digits=2),
    "active_codes": Metric(name="", paths=("metrics.prior.lpc/active_codes",), digits=0),
    "loss": Metric(name="", paths=tuple(f"{own}.loss" for own in _OWN)),
    "margin": Metric(name="", paths=tuple(f"{own}.rewards/margins" for own in _OWN)),
}
"""Preset -> the metric, with places in the report of a validation set."""


def preset(name: str, data: str) -> Metric:
    """The preset of a validation set."""
    found = PRESETS[name]
    paths = tuple(f"data.{data}.{path}" for path in found.paths)
    return replace(found, name=f"{name}({data})", paths=paths, data=data)


def default_metrics(sets: Iterable[str]) -> list[Metric]:
    """Those of a study that names none, for each validation set."""
    names = ("prior", "support", "support_exact", "marginal", "kl", "bits")
    return [preset(name, data) for data in sets for name in names]


def read_metrics(entry: Entry) -> list[Metric]:
    """The metrics of a study.

    Raises:
        UserError: one is ill-typed, or of an unknown preset.
    """
    if isinstance(entry.value, dict):
        return [_metric(of, name) for name, of in entry.entries().items()]
    metrics = [_metric(of, of.text()) for of in entry.items()]
    if len({metric.name for metric in metrics}) < len(metrics):
        raise entry.error("a metric is there twice")
    return metrics


def _metric(entry: Entry, name: str) -> Metric:
    if isinstance(entry.value, str):
        return _named(entry, name)
    if isinstance(entry.value, list):
        return Metric(name=name, paths=tuple(path.text() for path in entry.items()))
    parts = entry.known_entries(("path", "scale", "digits"), required=("path",))
    scale = parts["scale"].value if "scale" in parts else 1
    if type(scale) not in (int, float):
        raise parts["scale"].error(f"must be a number, got {scale!r}")
    return Metric(
        name=name,
        paths=tuple(path.text() for path in parts["path"].one_or_several()),
        scale=scale,
        digits=parts["digits"].whole_number(0) if "digits" in parts else 3,
    )


def _named(entry: Entry, name: str) -> Metric:
    found = re.fullmatch(r"([\w ]+)\((.+)\)", entry.text())
    if not found:
        if not entry.text().startswith("data."):
            raise entry.error(
                f"'{entry.value}' is neither PRESET(VALIDATION SET) nor a place 'data.SET....' in a report"
            )
        return Metric(name=name, paths=(entry.text(),))
    if found[1] not in PRESETS:
        raise entry.error(f"unknown preset '{found[1]}'{nearest(found[1], PRESETS)}; known: {', '.join(PRESETS)}")
    return replace(preset(found[1], found[2]), name=name)


def _find(node: Any, path: str) -> Any:
    """What is at a place; keys may have dots themselves."""
    if not isinstance(node, Mapping):
        return None
    if path in node:
        return node[path]
    for key, below in node.items():
        found = _find(below, path.removeprefix(f"{key}.")) if path.startswith(f"{key}.") else None
        if found is not None:
            return found
    return None
