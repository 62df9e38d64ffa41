"""From a sweep to its runs: the options of each, its folder, and whether it is finished.

A run is finished when its folder holds a report that was made with the options that it has now. Options that the schema
got or lost in the meantime do not count where they are at their default.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.codes.sweep import Options, Sweep, filled
from megatron_lpc.command_line import flag_of
from megatron_lpc.config import Config, ConfigError, all_options, parse_args, with_options
from megatron_lpc.config.flags import DEFAULT
from megatron_lpc.config.yaml_file import read_yaml
from megatron_lpc.files import write_json, write_text

REPORT, OPTIONS, LOG = "report.json", "options.json", "log.txt"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training and its evaluation, in a process of its own."""

    row: str
    data: str
    seed: int
    folder: Path
    flags: tuple[str, ...]
    """Those of the training, without `--seed` and `--save`."""
    config: Config
    """The options of these flags and of the seed."""
    support: dict[str, Any]
    """Those of `megatron_lpc.evaluate --support-...`."""

    @property
    def name(self) -> str:
        return f"{self.data} {self.row} seed {self.seed}"

    @cached_property
    def options(self) -> dict[str, Any]:
        """All that decides what comes out, as JSON keeps it; `changed`: options that are not at their default."""
        values = {name: option.value(self.config) for name, option in all_options().items() if name != "save"}
        changed = [name for name, value in values.items() if value != all_options()[name].default]
        found: dict[str, Any] = json.loads(json.dumps({"options": values, "changed": changed, "support": self.support}))
        return found

    def is_finished(self) -> bool:
        """Whether there is a report of a run with these options."""
        if not (self.folder / REPORT).exists() or not (self.folder / OPTIONS).exists():
            return False
        kept = json.loads((self.folder / OPTIONS).read_text(encoding="utf-8"))
        if kept.keys() != self.options.keys() or kept["support"] != self.support:
            return False
        return _fits(kept, self.options) and _fits(self.options, kept)

    def report(self) -> dict[str, Any]:
        """What `megatron_lpc.evaluate` wrote."""
        found: dict[str, Any] = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        return found

    def keep_options(self) -> None:
        """Write the options beside what the run will leave."""
        write_json(self.folder / OPTIONS, self.options)

    def command(self) -> list[str]:
        """Arguments of `python` that train and evaluate."""
        support = [part for name, value in self.support.items() for part in (f"--support-{name}", str(value))]
        target = ["--seed", str(self.seed), "--save", str(self.folder)]
        return ["-m", "benchmarks.codes.one_run", "--report", str(self.folder / REPORT), *support, *self.flags, *target]


def data_folder(output: Path, data: str) -> Path:
    """The folder `{data}` of a set of data."""
    return output / "data" / data


def plan_runs(sweep: Sweep, output: Path, *, data: Sequence[str], seeds: Sequence[int]) -> list[PlannedRun]:
    """The runs of all rows on some sets of data, seed by seed, so that all rows are there early.

    Of rows with equal options the first is run, and the others have its folder.

    Raises:
        ConfigError: an option of the sweep is unknown or ill-typed.
    """
    runs = []
    for name in data:
        places = {"data": data_folder(output, name), "output": output}
        file = _write_config(sweep, output / "configs" / f"{name}.yaml", places)
        firsts: dict[str, str] = {}
        for row, changed in sweep.all_rows().items():
            flags = ("--config", str(file), *_flags(filled(changed, places)))
            config = _parse(flags)
            first = firsts.setdefault(json.dumps(asdict(config)), row)
            support = filled(sweep.support, places) if _has_codes(config) else {}
            for seed in seeds:
                run = PlannedRun(
                    row=row,
                    data=name,
                    seed=seed,
                    folder=output / "runs" / name / first / f"seed{seed}",
                    flags=flags,
                    config=with_options(config, seed=seed),
                    support=support | {"seed": seed} if support else {},
                )
                runs.append(run)
    # The first seed of all sets of data before the second of any.
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def _fits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the options of one run are those of another, or at their default where the other does not know them."""
    return all(
        other["options"][name] == value if name in other["options"] else name not in one["changed"]
        for name, value in one["options"].items()
    )


def _has_codes(config: Config) -> bool:
    return config.latent.latent_mode == "lpc" and config.data.group_column is not None


def _write_config(sweep: Sweep, path: Path, places: dict[str, Path]) -> Path:
    """The options that all rows share, as a file: options of a file may be without effect in some rows."""
    values = read_yaml(sweep.config) | filled(sweep.options, places) | filled(sweep.base, places)
    sections: dict[str, Options] = {}
    for name, value in values.items():
        if name not in all_options():
            raise ConfigError(f"the sweep sets the unknown option '{name}'")
        if value == DEFAULT:
            continue
        sections.setdefault(all_options()[name].section, {})[name] = value
    write_text(path, yaml.safe_dump(sections, sort_keys=False))
    return path


def _flags(options: Options) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        flag = flag_of(name)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        else:
            flags += [flag, "none" if value is None else str(value)]
    return flags


def _parse(flags: Sequence[str]) -> Config:
    """The options of some flags, without the warning about what they leave without effect."""
    with contextlib.redirect_stderr(io.StringIO()):
        return parse_args(flags)
