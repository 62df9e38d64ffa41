"""The program: what it shows and writes."""

from __future__ import annotations

import contextlib
import csv
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_lpc.study import __main__ as program
from megatron_lpc.study.planned_run import PlannedRun

Plan = Callable[..., list[PlannedRun]]
Finish = Callable[..., None]
Write = Callable[..., Path]
ROWS = ["base", "plain", "both", "codebook_size=2", "codebook_size=8", "kl_weight=0.0", "kl_weight=0.5"]


@pytest.fixture
def results(planned: Plan, finish: Finish, tmp_path: Path) -> Callable[..., list[str]]:
    """Lines of the table of a study of which all runs but the last are finished."""

    def write(*flags: str, **changes: Any) -> list[str]:
        runs = planned(seeds=(1, 2), **changes)
        for run in runs[:-1]:
            finish(run, support=0.5 + run.seed / 10)
        program.main([str(tmp_path / "study.yaml"), "--output", str(tmp_path), "--data", "two", "--no-run", *flags])
        return (tmp_path / "table.md").read_text().splitlines()

    return write


def test_the_tables(results: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = results("--format", "png", "svg", reference="plain")
    assert lines[0].startswith("Mean and 95% interval (Student's t) over the seeds 1, 2.")
    assert lines[2] == "## two"
    # scipy.stats.t.interval(0.95, 1, loc=65, scale=scipy.stats.sem([60, 70]))
    cells = "65.0 ± 63.5 | 50.0 ± 0.0 | 65.0 ± 63.5 | 0.75 ± 0.00 | 1.00 ± 0.00 | 2 ± 0 |"
    assert lines[6] == f"| base | {cells}"
    assert [line.split(" | ")[0][2:] for line in lines[6:13]] == ROWS
    assert lines[12] == "| kl_weight=0.5 | 60.0 (n=1) | 50.0 (n=1) | 60.0 (n=1) | 0.75 (n=1) | 1.00 (n=1) | 2 (n=1) |"
    assert lines[14] == "Difference to `plain`, paired by seed:"
    assert lines[18] == "| base | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.00 ± 0.00 | +0.00 ± 0.00 | +0 ± 0 |"
    assert not any(line.startswith("| plain") for line in lines[14:24])
    assert "| base | 60.0 / 70.0 | 50.0 / 50.0 | 60.0 / 70.0 | 0.75 / 0.75 | 1.00 / 1.00 | 2 / 2 |" in lines
    assert lines[-2:] == ["- `plain`: latent_mode=none", "- `both`: gumbel_tau=2.0, latent_lr=0.5"]
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "sweep.svg").read_text()
    assert not (tmp_path / "support-pairs.png").exists()
    with (tmp_path / "results.csv").open() as file:
        figures = list(csv.DictReader(file))
    first = {"data": "two", "row": "base", "seed": "1", "metric": "support(d)", "support_pairs": "", "value": "60.0"}
    assert figures[0] == first
    assert len(figures) == 6 * (2 * len(ROWS) - 1)
    printed = capsys.readouterr().out
    assert "65.0 ± 63.5" in printed
    assert "table.md, results.csv, rows.png, rows.svg, sweep.png, sweep.svg\n" in printed
    assert printed.endswith("13 of 14 runs are finished\n")


def test_several_numbers_of_support_pairs(results: Callable[..., list[str]], tmp_path: Path) -> None:
    lines = results(rows={"plain": {"latent_mode": "none"}, "lpc": {}}, sweep=None, support={"pairs": [0, 8]})
    headings = "| row | support(d) @0, % | support(d) @8, % | prior(d), % | accuracy(a) @0, % | accuracy(a) @8, % |"
    assert lines[4].startswith(headings)
    assert (tmp_path / "support-pairs.png").exists()


def test_one_seed_has_no_interval(planned: Plan, finish: Finish, tmp_path: Path) -> None:
    finish(planned(rows={"lpc": {}}, sweep=None, metrics=["kl(d)", "bits(d)", "loss(d)"])[0])
    command = [str(tmp_path / "study.yaml"), "--output", str(tmp_path), "--data", "two", "--no-run", "--seeds", "1"]
    program.main(command)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "Of one seed, 1: one seed has no interval."
    assert lines[6] == "| lpc | 0.75 | 1.00 | - |"


def test_a_metric_that_no_report_has_is_said(
    results: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    results(metrics=["kl(d)", "loss(d)"])
    assert "metrics: no report has 'loss(d)'" in capsys.readouterr().err


def test_metrics_need_not_be_named(results: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    lines = results(metrics=None)
    assert lines[4].startswith("| row | prior(d), % | support(d), % | kl(d), nats | bits(d) | prior(a), % |")
    assert capsys.readouterr().err == ""


def test_the_rows_are_listed(write_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    program.main([str(write_study()), "--output", str(tmp_path / "new"), "--list", "--rows", "codebook", "plain"])
    assert capsys.readouterr().out.split() == ["plain", "codebook_size=2", "codebook_size=8"]
    assert signal.getsignal(signal.SIGTERM) is before, "whoever calls it keeps the handler"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["--rows", "paper"], {}, "--rows: none of base, plain, both"),
        (["--data", "four"], {}, "--data: none of two, three"),
        (["--jobs", "0"], {}, "--jobs 0: must be at least 1"),
        ([], {"metrics": ["kl(x)"]}, "metrics: 'kl(x)': the validation sets are d, a"),
        ([], {"plot": ["kl(a)"]}, "plot: 'kl(a)' is none of the metrics: support(d), "),
        ([], {"data": {"two": ["-c 'raise SystemExit(3)'"]}}, "data.two: `-c raise SystemExit(3)` ended with 3"),
    ],
)
def test_mistakes(
    flags: list[str],
    changes: dict[str, Any],
    message: str,
    write_study: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main([str(write_study(**changes)), "--output", str(tmp_path), *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_terminal_shows_the_table_after_each_run(write_study: Write, tmp_path: Path) -> None:
    result = '{"data": {"d": {"metrics": {"none": {"rewards/accuracies": 0.%s}}}}}'
    rule = tmp_path / "rule.py"
    rule.write_text(f"import sys; open(sys.argv[1], 'w').write({result!r} % sys.argv[2])")
    rows = {"rule": {"command": f"{rule} {{report}} {{seed}}"}}
    study = write_study(data={"two": []}, rows=rows, sweep=None, metrics=["prior(d)"])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "megatron_lpc.study", str(study), "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    first, last = shown.decode().split("[2/2]")
    assert "10.0 (n=1)" in first
    assert "15.0 ± " in last
    assert "15.0 ± " not in first


def test_the_commands_are_those_that_run(write_study: Write, tmp_path: Path) -> None:
    result = '{"data": {"d": {"metrics": {"none": {"rewards/accuracies": 0.25}}}}}'
    rule = tmp_path / "a rule.py"
    rule.write_text(f"import sys; open(sys.argv[1], 'w').write({result!r})")
    output = tmp_path / "out"
    study = write_study(
        data={"two": ["-c \"open(r'{data}/made', 'a').write('x')\""]},
        rows={"rule": {"command": f"'{rule}' {{report}}"}},
        sweep=None,
        metrics=["prior(d)"],
    )
    program.main([str(study), "--output", str(output)])
    report = output / "runs" / "two" / "rule" / "all-seeds" / "report.json"
    assert report.read_text() == result
    assert (output / "table.md").read_text().count("| rule | 25.0 |") == 2, "without an interval, and seed by seed"
    report.unlink()
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(output / "commands.sh")], check=True, env={**os.environ, **path})
    assert report.read_text() == result
    assert (output / "data" / "two" / "made").read_text() == "xx"
    rule.write_text("raise SystemExit(3)")
    report.unlink()
    with pytest.raises(SystemExit) as caught:
        program.main([str(study), "--output", str(output)])
    assert caught.value.code == 1
