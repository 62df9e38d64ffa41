"""What has come of the runs that are finished: figures by set of data, row, column and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_lpc.study.intervals import Estimate, mean_interval, paired_interval
from megatron_lpc.study.metrics import Metric
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.rows import Row
from megatron_lpc.study.study_file import Study


@dataclass(frozen=True, kw_only=True)
class Column:
    """A metric, under a number of support pairs where it depends on that and there are several."""

    metric: Metric
    pairs: int | None

    @property
    def name(self) -> str:
        return self.metric.name if self.pairs is None else f"{self.metric.name} @{self.pairs}"

    @property
    def heading(self) -> str:
        return f"{self.name}, {self.metric.unit}" if self.metric.unit else self.name


def columns_of(study: Study, metrics: Sequence[Metric]) -> list[Column]:
    """The columns of the table."""
    pairs = study.support.get("pairs", ())
    columns = []
    for metric in metrics:
        several = pairs if metric.needs_support and len(pairs) > 1 else (None,)
        columns += [Column(metric=metric, pairs=number) for number in several]
    return columns


Values = dict[int, float]
"""Seed -> figure."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All figures that there are."""

    study: Study
    columns: list[Column]
    seeds: Sequence[int]
    data: Sequence[str]
    """The sets of data."""
    values: dict[tuple[str, str, str], Values]
    """Set of data, row and name of a column -> figures; missing where there are none."""

    @classmethod
    def of_runs(cls, study: Study, columns: list[Column], runs: Sequence[PlannedRun]) -> Results:
        """Those of the runs that are finished."""
        values: dict[tuple[str, str, str], Values] = {}
        for run in runs:
            if not run.is_finished():
                continue
            for column in columns:
                value = column.metric.value(run.report(column.pairs))
                if value is not None:
                    values.setdefault((run.data, run.row.name, column.name), {})[run.seed] = value
        return cls(
            study=study,
            columns=columns,
            seeds=list(dict.fromkeys(run.seed for run in runs)),
            data=list(dict.fromkeys(run.data for run in runs)),
            values=values,
        )

    def of(self, data: str, row: str, column: Column) -> Values:
        """Figures by seed; none where no run is finished, or none has the metric."""
        return self.values.get((data, row, column.name), {})

    def has(self, column: Column) -> bool:
        """Whether there is any figure of a column."""
        return any(name == column.name for _, _, name in self.values)

    def without_empty_columns(self) -> Results:
        """Without columns that have no figure."""
        return replace(self, columns=[column for column in self.columns if self.has(column)])

    def rows(self, data: str) -> list[Row]:
        """The rows that have a figure on a set of data."""
        names = {row for of_data, row, _ in self.values if of_data == data}
        return [row for row in self.study.rows.values() if row.name in names]

    def estimate(self, data: str, row: Row, column: Column) -> Estimate | None:
        """Mean over seeds; None where there is no figure. What is equal for all seeds counts as one."""
        values = list(self.of(data, row.name, column).values())
        if not values:
            return None
        return mean_interval(values[:1] if row.is_constant else values)

    def difference(self, data: str, row: Row, column: Column) -> Estimate | None:
        """To the row's reference, paired by seed; None where one of them has no figure, or a row is its reference."""
        name = self.study.reference_of(row)
        if name is None or name == row.name:
            return None
        reference = self.study.rows[name]
        estimate = paired_interval(self.of(data, row.name, column), self.of(data, name, column))
        if estimate is not None and row.is_constant and reference.is_constant:
            return mean_interval([estimate.mean])
        return estimate
