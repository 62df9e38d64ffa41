"""From a study to its runs: the options of each, its folder, and whether it is finished.

A run is finished when its folder holds reports that were made with the options that it has now. Options that the schema
got or lost in the meantime do not count where they are at their default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import UserError
from megatron_lpc.config import Config
from megatron_lpc.files import write_json
from megatron_lpc.outside.json_text import read_json
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.study.rows import Row
from megatron_lpc.study.run_files import OPTIONS, TRAINED


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training with its evaluations, or one command of a row, in a process of its own."""

    row: Row
    data: str
    seed: int
    folder: Path
    command: tuple[str, ...]
    """Arguments of `python`."""
    training: dict[str, Any]
    """All that decides about the training, as JSON keeps it: `options`, and in `changed` those not at their default."""
    evaluation: dict[str, Any]
    """All that decides about reports besides, as JSON keeps it."""
    reports: Mapping[int | None, str]
    """Support pairs of each evaluation -> its file; None where there is no support."""
    config: Config | None = None
    """Options of the training; None for a command."""
    validation_sets: Sequence[str] = ()
    """Names of those that it reports on; none for a command, whose report may hold any."""

    @property
    def name(self) -> str:
        return f"{self.data}: {self.row.name}, seed {self.seed}"

    def is_finished(self) -> bool:
        """Whether there are the reports of a run with these options."""
        if not all((self.folder / file).exists() for file in self.reports.values()):
            return False
        return self._kept_training_fits() and self._kept()["evaluation"] == self.evaluation

    def is_trained(self) -> bool:
        """Whether there is a checkpoint of a whole training with these options."""
        return (self.folder / TRAINED).exists() and self._kept_training_fits()

    def report(self, pairs: int | None) -> dict[str, Any]:
        """The report under so many support pairs; where these make no difference, the only one or the first."""
        file = self.reports.get(pairs) or next(iter(self.reports.values()))
        return read_saved(self.folder / file, dict[str, Any])

    def keep_options(self) -> None:
        """Write the options beside what the run will leave."""
        write_json(self.folder / OPTIONS, {"training": self.training, "evaluation": self.evaluation})

    def _kept(self) -> dict[str, Any]:
        training = {"options": dict[str, Any], "changed": list[str]}
        return read_saved(self.folder / OPTIONS, {"training": training, "evaluation": dict[str, Any]})

    def _kept_training_fits(self) -> bool:
        if not (self.folder / OPTIONS).exists():
            return False
        kept = self._kept()["training"]
        return _fits(kept, self.training) and _fits(self.training, kept)


def read_saved(path: Path, kind: Any) -> dict[str, Any]:
    """What a run has left in a JSON file.

    Raises:
        UserError: it is damaged.
    """
    try:
        found: dict[str, Any] = read_json(path, kind)
    except Malformed as error:
        raise UserError(f"{error}; remove the folder, so that the run is done again") from error
    return found


def _fits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the options of one run are those of another, or at their default where the other does not know them."""
    return all(
        other["options"][name] == value if name in other["options"] else name not in one["changed"]
        for name, value in one["options"].items()
    )
