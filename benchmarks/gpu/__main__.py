"""All that one GPU can tell, in parts that end within nine minutes each.

    bash benchmarks/run_gpu.sh list                        # the parts, with their limits
    bash benchmarks/run_gpu.sh                             # every part, then the summary
    bash benchmarks/run_gpu.sh training inspect            # some of them; the summary has the others' earlier results
    bash benchmarks/run_gpu.sh summary                     # the summary alone
    bash benchmarks/run_gpu.sh goals                       # what the kernels are to reach

Without a network: `prepare --wheels DIR` where there is one, with the same version of Python; then `--wheels DIR` on
the machine with the GPU installs from there, into a Python that has torch and Triton.

A part that fails or exceeds its limit is recorded, and the others run. The results are in benchmarks/results/GPU, a log
per part, with everything on one page in summary.md; the exit status is 1 if a part did not pass. Training beside TRL
needs the project installed and `--pairs`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parts import PARTS, TRAINING_PARTS, all_parts
from benchmarks.gpu.run import ROOT, Record, read_records, run, write_record
from benchmarks.gpu.summary import goals_table, summary
from benchmarks.gpu.wheels import PackageError, install, prepare

_COMMANDS = ("list", "prepare", "summary", "goals")
_PROBE = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags; ends the program for those that do not fit."""
    parser = argparse.ArgumentParser(
        prog="run_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", metavar="PART", help="parts (default: all), or list, prepare, summary, goals"
    )
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="folder of wheels to install from, or to fetch into")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="preference pairs, for the parts that train")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results/GPU")
    parser.add_argument("--dry-run", action="store_true", help="each part's stand-in on a CPU, in seconds")
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    what, known = arguments.what, all_parts()
    unknown = [name for name in what if name not in known and name not in _COMMANDS]
    if unknown:
        parser.error(f"no part is called {unknown[0]!r}; `list` shows them all")
    if len(what) > 1 and any(name in _COMMANDS for name in what):
        parser.error(f"list, prepare, summary and goals stand alone, got {' '.join(what)}")
    if what == ["prepare"] and arguments.wheels is None:
        parser.error("prepare needs --wheels DIR, the folder to fetch into")
    for flag, path in (("--pairs", arguments.pairs), ("--wheels", arguments.wheels)):
        if path is not None and what != ["prepare"] and not path.exists():
            parser.error(f"{flag}: there is no {path}")
    training = {part.name for part in TRAINING_PARTS}
    if arguments.pairs is None and training.intersection(what) and not arguments.dry_run:
        parser.error(f"{', '.join(sorted(training.intersection(what)))}: needs --pairs FILE")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.what == ["list"]:
        for part in all_parts().values():
            print(f"{part.name:26} {part.limit:4} s  {part.about}")
        return 0
    if arguments.what == ["goals"]:
        print(goals_table(), end="")
        return 0
    if arguments.what == ["prepare"]:
        return _prepare(arguments.wheels)
    gpu = "dry run on a CPU" if arguments.dry_run else _gpu()
    if not gpu:
        print("run_gpu.sh: PyTorch finds no CUDA device; --dry-run tries the parts on a CPU", file=sys.stderr)
        return 2
    folder = ROOT / "benchmarks" / "results" / gpu.lower().replace(" ", "-")
    results = (arguments.results or folder).absolute()
    results.mkdir(parents=True, exist_ok=True)
    records = [] if arguments.what == ["summary"] else _run(arguments, results)
    page = summary(gpu, _origin(), read_records(results, ["install", *all_parts()]), results)
    (results / "summary.md").write_text(page, encoding="utf-8")
    print(page)
    return 0 if all(record.passed for record in records) else 1


def _run(arguments: argparse.Namespace, results: Path) -> list[Record]:
    """The records of the parts that are asked for, each printed as it ends."""
    known = all_parts()
    default = [*PARTS, *(TRAINING_PARTS if arguments.pairs is not None or arguments.dry_run else ())]
    wanted = [known[name] for name in arguments.what] or default
    pairs = None if arguments.pairs is None else arguments.pairs.absolute()
    records = [] if arguments.wheels is None else [_install(arguments.wheels, results)]
    for part in wanted:
        print(f"{part.name}: {part.about}, at most {part.limit} s", flush=True)
        words = part.arguments(results, pairs, arguments.dry_run)
        records.append(run(part.name, words, part.limit, results))
        print(f"  {records[-1].result} after {records[-1].seconds:.0f} s {records[-1].note}", flush=True)
    return records


def _install(wheels: Path, results: Path) -> Record:
    """Install, and record it as if it were a part: the parts that do without the packages still run."""
    start = time.monotonic()
    try:
        left_out = install(wheels)
        result, note = "passed", "; ".join(f"without {name}: {reason}" for name, reason in left_out.items())
    except PackageError as error:
        result, note = "failed", str(error)
    record = Record(
        part="install",
        result=result,
        seconds=round(time.monotonic() - start, 1),
        limit=all_parts()["environment"].limit,
        command="python -m pip install --no-index --find-links WHEELS",
        note=note,
    )
    write_record(record, results)
    print(f"install: {result} {note}", flush=True)
    return record


def _prepare(wheels: Path) -> int:
    try:
        left_out = prepare(wheels)
    except PackageError as error:
        print(f"run_gpu.sh: {error}", file=sys.stderr)
        return 1
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    print(f"{len(list(wheels.glob('*.whl')))} wheels in {wheels}")
    return 0


def _gpu() -> str:
    """Name of the GPU; empty without one. In a process of its own, which leaves the GPU free."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    return done.stdout.strip()


def _origin() -> dict[str, str]:
    program = "import torch, triton; print(torch.__version__, triton.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    torch_version, _, triton_version = done.stdout.strip().partition(" ")
    git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"commit": commit, "torch": torch_version, "triton": triton_version, "python": sys.version.split()[0]}


if __name__ == "__main__":
    raise SystemExit(main())
