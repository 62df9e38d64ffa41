"""Names of what lies in the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OPTIONS = "options.json"
"""What the run is."""
LOG = "log.txt"
"""What it printed."""
TRAINED = "trained"
"""There while there is the checkpoint of a training that has ended."""
ENDS_WITH_INPUT = "MEGATRON_LPC_STUDY"
"""Environment variable under which `one_run` ends with its standard input."""


def report_files(support_pairs: Sequence[int] | None) -> Mapping[int | None, str]:
    """Number of support pairs -> file of the report; None where there is no support."""
    if support_pairs is None:
        return {None: "report.json"}
    return {pairs: f"report-{pairs}.json" for pairs in support_pairs}
