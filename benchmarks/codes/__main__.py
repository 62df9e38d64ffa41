"""Sweep the options of the latent, one at a time about a base, over several seeds and sets of data.

    python -m benchmarks.codes benchmarks/codes/recovery.yaml --output runs/codes --jobs 2

Run it from the root of the repository. The file is the grid (`benchmarks/codes/sweep.py` says what it holds). Each run
is a process of its own. Stop and start it at will: a finished run is not run again, what was cut off is, and so is a
run whose options have changed; other code needs another folder. Writes table.md and picture.png into the folder, over
all finished runs of the chosen sets of data and seeds.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.codes.bounds import read_labels, with_two_codes, without_codes
from benchmarks.codes.execute import execute, make_data
from benchmarks.codes.plan import PlannedRun, plan_runs
from benchmarks.codes.sweep import Sweep, read_sweep
from benchmarks.kernels.provenance import provenance
from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.config import ConfigError, validate
from megatron_lpc.files import write_text


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="YAML file of the sweep")
    parser.add_argument("--output", type=Path, required=True, help="folder for data, runs, table.md and picture.png")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--data", nargs="+", metavar="NAME", help="only these sets of data")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="other seeds than the file's")
    parser.add_argument("--rows", nargs="+", metavar="PREFIX", help="run only rows whose name begins so")
    parser.add_argument("--no-run", action="store_true", help="only write table and picture of what is finished")
    parser.add_argument("--list", action="store_true", help="only print the rows that would be run")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    return arguments


def chosen(names: Sequence[str], wanted: Sequence[str] | None, flag: str) -> list[str]:
    """Those of `names` that begin with one of the wanted; all when nothing is wanted.

    Raises:
        UserError: there is none.
    """
    found = [name for name in names if wanted is None or name.startswith(tuple(wanted))]
    if not found:
        raise UserError(f"{flag}: none of {', '.join(names)}")
    return found


def check_options(runs: Sequence[PlannedRun]) -> None:
    """Raises UserError where a run would refuse its options, before any has started."""
    for run in runs:
        try:
            validate(run.config, 1)
        except ConfigError as error:
            raise UserError(f"{run.name}: {error}") from error


def write_results(sweep: Sweep, runs: Sequence[PlannedRun], output: Path, header: str) -> None:
    """table.md and picture.png over the runs that are finished."""
    from benchmarks.codes.picture import write_picture
    from benchmarks.codes.table import sweep_table

    names = dict.fromkeys(run.data for run in runs)
    tables = [f"## {data}\n\n{_bounds(runs, sweep, data)}\n{sweep_table(sweep, runs, data)}" for data in names]
    write_text(output / "table.md", "\n".join([header, *tables]))
    write_picture(output / "picture.png", sweep, runs)


def _bounds(runs: Sequence[PlannedRun], sweep: Sweep, data: str) -> str:
    """A sentence on what accuracy can be had on the disagreeing pairs of a set of data."""
    options = next(run for run in runs if run.data == data).config.data
    assert options.group_column is not None
    labelled = read_labels(Path(options.valid_data[sweep.report["disagree"]]), options.group_column)
    plain, two = 100 * without_codes(labelled), 100 * with_two_codes(labelled)
    return (
        f"On disagreeing pairs at most {plain:.1f}% without knowing the annotator, and {two:.1f}% with two codes that "
        "choose as two of the annotators do.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the sweep cannot work, with 1 when runs failed."""
    # As an exception, so that it ends the runs as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with reports_errors():
        arguments = parse(argv)
        sweep, output = read_sweep(arguments.sweep), arguments.output
        data = chosen(list(sweep.data), arguments.data, "--data")
        seeds = arguments.seeds or sweep.seeds
        rows = list(sweep.all_rows())
        wanted = set(chosen(rows, arguments.rows, "--rows"))
        if arguments.list:
            print("\n".join(row for row in rows if row in wanted))
            return
        runs = plan_runs(sweep, output, data=data, seeds=seeds)
        to_do = [run for run in runs if run.row in wanted]
        known = provenance(f"`python -m benchmarks.codes {arguments.sweep}`", "cpu")
        header = f"Seeds {' / '.join(map(str, seeds))}. " + ", ".join(f"{name}: {known[name]}" for name in known) + "\n"
        if not arguments.no_run:
            check_options(to_do)
            for name in data:
                make_data(sweep, output, name)
            for _ in execute(to_do, arguments.jobs):
                pass
        write_results(sweep, runs, output, header)
        failed = [run.name for run in to_do if not run.is_finished()]
        print(f"{output}/table.md and picture.png: {sum(run.is_finished() for run in runs)} finished runs")
        if failed and not arguments.no_run:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
