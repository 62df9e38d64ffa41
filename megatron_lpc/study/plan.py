"""Plan the runs of a study, and refuse what cannot work before any of them starts."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_lpc.command_line import UserError, flag_of
from megatron_lpc.config import (
    Config,
    ConfigError,
    all_options,
    data_parallel_size,
    parse_args,
    validate,
    validate_episodes,
    with_options,
)
from megatron_lpc.config.flags import DEFAULT
from megatron_lpc.config.yaml_file import read_yaml
from megatron_lpc.evaluation.options import SupportOptions, has_groups
from megatron_lpc.files import write_text
from megatron_lpc.study.entries import Options
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.rows import Row, Support, folder_name
from megatron_lpc.study.run_files import report_files
from megatron_lpc.study.study_file import Study


def plan_runs(study: Study, output: Path, *, data: Sequence[str], seeds: Sequence[int]) -> list[PlannedRun]:
    """The runs of all rows on some sets of data, seed by seed, so that all rows are there early.

    Of rows with equal options the first is run, and the others have its folder.

    Raises:
        UserError: the options of a row cannot work; names the file and the row.
    """
    runs: list[PlannedRun] = []
    for name in data:
        planner = _Planner.of_data(study, output, name)
        for row in study.rows_of(name):
            try:
                runs += planner.commands(row, seeds) if row.command else planner.trainings(row, seeds)
            except UserError as error:
                raise UserError(f"{study.file}: row '{row.name}': {'; '.join(str(error).splitlines())}") from error
    # The first seed of all sets of data before the second of any.
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def data_folder(output: Path, data: str) -> Path:
    """The folder `{data}` of a set of data."""
    return output / "data" / folder_name(data)


def filled(value: Any, places: Mapping[str, object]) -> Any:
    """A value with `{data}` and the like replaced, in lists and mappings too."""
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", str(place))
        return value
    if isinstance(value, list | tuple):
        return [filled(item, places) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, places) for key, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class _Planner:
    """What the runs on one set of data share."""

    study: Study
    output: Path
    data: str
    file: Path
    """Their options, as a file: there, unlike in a flag, an option may be without effect in some rows."""
    places: dict[str, Path]
    firsts: dict[str, str]
    """Options, as JSON -> the first row that has them."""

    @classmethod
    def of_data(cls, study: Study, output: Path, data: str) -> _Planner:
        places = {"data": data_folder(output, data), "output": output}
        options = filled(study.options | study.data[data].options, places)
        sections: dict[str, Options] = {}
        for name, value in (read_yaml(study.config) | options).items():
            if value == DEFAULT or name in ("save", "seed"):
                continue
            sections.setdefault(all_options()[name].section, {})[name] = value
        file = output / "configs" / f"{folder_name(data)}.yaml"
        write_text(file, yaml.safe_dump(sections, sort_keys=False))
        return cls(study=study, output=output, data=data, file=file, places=places, firsts={})

    def commands(self, row: Row, seeds: Sequence[int]) -> list[PlannedRun]:
        """Runs of a rule: one for all seeds, unless it asks for the seed."""
        assert row.command is not None
        runs = []
        for seed in seeds:
            folder = self._folder(row.name) / ("all-seeds" if row.is_constant else f"seed{seed}")
            places = {**self.places, "report": folder / report_files(None)[None], "seed": seed}
            command = filled(row.command, places)
            run = PlannedRun(
                row=row,
                data=self.data,
                seed=seed,
                folder=folder,
                command=tuple(command),
                training={"options": {}, "changed": []},
                evaluation={"command": command},
                reports=report_files(None),
            )
            runs.append(run)
        return runs

    def trainings(self, row: Row, seeds: Sequence[int]) -> list[PlannedRun]:
        """Runs of a row that is trained."""
        flags = ("--config", str(self.file), *_flags(filled(row.options, self.places)))
        config = _parse(flags)
        _refuse(config, self.study.processes)
        evaluate = _flags(filled(self.study.evaluate | row.evaluate, self.places))
        evaluated = _parse((*flags, *evaluate))
        _refuse(evaluated, self.study.processes)
        support = self._support(row) if has_groups(evaluated) else None
        first = self.firsts.setdefault(json.dumps([asdict(config), evaluate, support]), row.name)
        runs = []
        for seed in seeds:
            folder = self._folder(first) / f"seed{seed}"
            evaluation = _evaluation_flags(evaluate, support, seed)
            keep = ["--keep-checkpoint"] if self.study.keep_checkpoints else []
            if self.study.processes > 1:
                keep += ["--processes", str(self.study.processes)]
            command = ["-m", "megatron_lpc.study.one_run", *keep, *evaluation, *flags, "--seed", str(seed)]
            run = PlannedRun(
                row=row,
                data=self.data,
                seed=seed,
                folder=folder,
                command=(*command, "--save", str(folder)),
                training=_identity(with_options(config, seed=seed)),
                evaluation={"flags": evaluation},
                reports=report_files(None if support is None else support["pairs"]),
                config=config,
                validation_sets=list(evaluated.data.valid_data),
            )
            runs.append(run)
        return runs

    def _support(self, row: Row) -> Support:
        """The row's, what it does not say from the study's, and what neither says by default."""
        support: Support = {"pairs": [SupportOptions.pairs], **self.study.support, **row.support}
        return {name: filled(value, self.places) for name, value in support.items()}

    def _folder(self, row: str) -> Path:
        return self.output / "runs" / folder_name(self.data) / folder_name(row)


def _identity(config: Config) -> dict[str, Any]:
    values = {name: option.value(config) for name, option in all_options().items() if name != "save"}
    changed = [name for name, value in values.items() if value != all_options()[name].default]
    found: dict[str, Any] = json.loads(json.dumps({"options": values, "changed": changed}))
    return found


def _refuse(config: Config, processes: int) -> None:
    """Raises ConfigError where the run would refuse its options, or would end without a report."""
    validate(config, processes)
    validate_episodes(config, data_parallel_size(config, processes))
    if config.training.exit_interval or config.training.exit_duration_in_mins:
        raise ConfigError("exit_interval, exit_duration_in_mins: a study needs whole trainings; unset them")
    if not config.data.valid_data:
        raise ConfigError("valid_data: is empty, and there is nothing to report; name a validation set")


def _evaluation_flags(evaluate: Sequence[str], support: Support | None, seed: int) -> list[str]:
    """Flags of `one_run` for its evaluations."""
    flags = [f"--evaluate={shlex.join(evaluate)}"] if evaluate else []
    if support is None:
        return flags
    return flags + _flags({f"support_{name}": value for name, value in {"seed": seed, **support}.items()})


def _flags(options: Options) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        flag = flag_of(name)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif isinstance(value, dict):
            flags += [flag, *(f"{key}={item}" for key, item in value.items())]
        else:
            flags += [flag, "none" if value is None else str(value)]
    return flags


def _parse(flags: Sequence[str]) -> Config:
    """The options of some flags, without the warning about what they leave without effect."""
    with contextlib.redirect_stderr(io.StringIO()):
        return parse_args(flags)
