"""The curves of a training by which collapse shows, and the verdict at its end."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.config import ConfigError
from megatron_lpc.losses import CodeVerdict, code_verdict
from megatron_lpc.training.metrics_file import read_metrics

PANELS = {
    "KL(q || p), nats": ("lpc/kl",),
    "entropy, nats": ("lpc/entropy_q", "lpc/entropy_p"),
    "usage perplexity": ("lpc/perplexity",),
    "active codes": ("lpc/active_codes",),
    "information, nats": ("lpc/information",),
}
"""Title -> metrics drawn in one panel."""
MOST_POINTS = 200
"""Points of a curve, at most; of more steps the means of as many stretches."""

Curve = list[tuple[float, float]]
"""(step, value), ascending."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Of one run."""

    steps: int
    training: dict[str, Curve]
    """Metric -> its curve."""
    evaluations: dict[str, dict[str, Curve]]
    """Validation set -> the same: figures of codes do not depend on the latent."""
    verdicts: dict[str, CodeVerdict]
    """Validation set -> the verdict at its last evaluation."""


def read_curves(path: Path, num_codes: int) -> Curves | None:
    """The curves of a metrics file; None where it has none of a codebook.

    Raises:
        ConfigError: it is no file of metrics.
    """
    try:
        records = read_metrics(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    records = [record for record in records if "lpc/kl" in record]
    training = [record for record in records if "evaluation" not in record]
    if not training:
        return None
    of_sets: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        if "evaluation" in record:
            of_sets[record["evaluation"].rpartition("/")[0]][record["iteration"]] = record
    evaluations = {name: [of_set[step] for step in sorted(of_set)] for name, of_set in of_sets.items()}
    verdicts = {name: code_verdict(of_set[-1], num_codes) for name, of_set in evaluations.items()}
    return Curves(
        steps=max(record["iteration"] for record in records),
        training=_curves(training),
        evaluations={name: _curves(of_set) for name, of_set in evaluations.items()},
        verdicts={name: verdict for name, verdict in verdicts.items() if verdict is not None},
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Of the metrics of all panels."""
    found = {}
    for metric in (metric for metrics in PANELS.values() for metric in metrics):
        points = {record["iteration"]: record.get(metric, math.nan) for record in records}
        finite = sorted((float(step), value) for step, value in points.items() if math.isfinite(value))
        found[metric] = _thinned(finite)
    return found


def _thinned(curve: Curve) -> Curve:
    stretch = math.ceil(len(curve) / MOST_POINTS)
    parts = [curve[start : start + stretch] for start in range(0, len(curve), max(stretch, 1))]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]
