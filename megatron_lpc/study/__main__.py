"""Train, evaluate and compare a grid of options over several seeds and sets of data.

    python -m megatron_lpc.study STUDY.yaml --output runs/study --jobs 2

The file says what is run; `megatron_lpc/study/study_file.py` and docs/study.md say what it may hold. Each run is a
process of its own. Stop and start it at will, by Ctrl-C too: a finished run is not run again, what was cut off is, and
so is a run whose options have changed; other code needs another folder. Writes into the folder, over all finished runs
of the chosen sets of data and seeds: table.md, results.csv, pictures, and commands.sh with the commands of all runs.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors, warn
from megatron_lpc.files import write_text
from megatron_lpc.study.commands import script
from megatron_lpc.study.execute import execute, make_data, unfinished
from megatron_lpc.study.figures import FORMATS, write_figures
from megatron_lpc.study.metrics import Metric, default_metrics
from megatron_lpc.study.plan import plan_runs
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.results import Results, columns_of
from megatron_lpc.study.rows import named_or_beginning
from megatron_lpc.study.study_file import Study, read_study
from megatron_lpc.study.table import csv_text, live_table, markdown
from megatron_lpc.terminal import wide_console


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(
        prog="python -m megatron_lpc.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("--output", type=Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--data", nargs="+", metavar="NAME", help="only this set, or those whose name begins so")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="other seeds than the file's")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="run only this row, or those whose name begins so")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["png"], help="of the pictures (png)")
    parser.add_argument("--no-run", action="store_true", help="only write the results of what is finished")
    parser.add_argument("--list", action="store_true", help="only print the rows that would be run")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    return arguments


def chosen(names: Sequence[str], wanted: Sequence[str] | None, flag: str) -> list[str]:
    """Those of `names` that are wanted, by name or by how it begins; all when nothing is wanted.

    Raises:
        UserError: there is none.
    """
    found = list(names) if wanted is None else named_or_beginning(names, wanted)
    if not found:
        raise UserError(f"{flag}: none of {', '.join(names)}")
    return found


def metrics_of(study: Study, runs: Sequence[PlannedRun]) -> tuple[list[Metric], list[Metric]]:
    """The metrics of the table, and those that are drawn.

    Raises:
        UserError: one is of a validation set that no run has, or one that is drawn is not in the table.
    """
    sets = dict.fromkeys(name for run in runs for name in run.validation_sets)
    metrics = default_metrics(sets) if study.metrics is None else study.metrics
    for metric in metrics:
        if sets and metric.data not in (None, *sets):
            raise UserError(f"{study.file}: metrics: '{metric.name}': the validation sets are {', '.join(sets)}")
    names = {metric.name: metric for metric in metrics}
    for name in study.plot or ():
        if name not in names:
            raise UserError(f"{study.file}: plot: '{name}' is none of the metrics: {', '.join(names)}")
    return metrics, [names[name] for name in study.plot] if study.plot else metrics[:1]


@contextlib.contextmanager
def sole_user(output: Path) -> Iterator[None]:
    """No other study runs in the folder meanwhile.

    Raises:
        UserError: one does.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"--output {output}: another study is running in this folder") from None
    with lock:
        yield


def run_all(runs: Sequence[PlannedRun], jobs: int, results: Callable[[], Results], output: Path) -> None:
    """Run what is not finished; after each run say how far it is and write the table so far."""
    console = wide_console()
    print(f"{len(unfinished(runs))} runs to do, {jobs} at a time", flush=True)
    with contextlib.closing(execute(runs, jobs)) as all_ended:
        for ended in all_ended:
            print(ended, flush=True)
            so_far = results()
            write_text(output / "table.md", markdown(so_far))
            if console.is_terminal:
                console.print(live_table(so_far, ended.run.data))


def write_results(results: Results, drawn: Sequence[Metric], arguments: argparse.Namespace) -> None:
    """table.md, results.csv and pictures; prints the tables."""
    output: Path = arguments.output
    write_text(output / "table.md", markdown(results))
    write_text(output / "results.csv", csv_text(results))
    pictures = write_figures(results, drawn, output, arguments.format)
    console = wide_console()
    for data in results.data:
        console.print(live_table(results, data))
    for column in results.columns:
        if results.values and not results.has(column):
            warn(f"{results.study.file}: metrics: no report has '{column.name}'")
    names = ", ".join(path.name for path in (output / "results.csv", *pictures))
    print(f"{output}/table.md, {names}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the study cannot work, with 1 when runs failed, with 130 after Ctrl-C."""
    # As an exception, so that it ends the runs as well.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with reports_errors():
            arguments = parse(argv)
            study = read_study(arguments.study)
            rows = chosen(list(study.rows), arguments.rows, "--rows")
            if arguments.list:
                print("\n".join(rows))
                return
            with contextlib.nullcontext() if arguments.no_run else sole_user(arguments.output):
                failed = run_study(study, rows, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        raise SystemExit(1)


def run_study(study: Study, rows: Sequence[str], arguments: argparse.Namespace) -> bool:
    """Run what the flags say, write the results, and say whether a run failed."""
    output: Path = arguments.output
    data = chosen(list(study.data), arguments.data, "--data")
    runs = plan_runs(study, output, data=data, seeds=arguments.seeds or study.seeds)
    metrics, drawn = metrics_of(study, runs)
    columns = columns_of(study, metrics)
    to_do = [] if arguments.no_run else [run for run in runs if run.row.name in rows]
    if to_do:
        write_text(output / "commands.sh", script(study, output, runs))
        for name in data:
            make_data(study, output, name)
        run_all(to_do, arguments.jobs, lambda: Results.of_runs(study, columns, runs), output)
    results = Results.of_runs(study, columns, runs)
    write_results(results if study.metrics else results.without_empty_columns(), drawn, arguments)
    print(f"{sum(run.is_finished() for run in runs)} of {len(runs)} runs are finished")
    return any(not run.is_finished() for run in to_do)


if __name__ == "__main__":
    main()
