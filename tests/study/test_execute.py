"""What is run, what is run again, and how runs end. Rules stand in for trainings."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from process_tree import is_alive

from megatron_lpc.command_line import UserError
from megatron_lpc.study.execute import execute, make_data, unfinished
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.study_file import read_study

Plan = Callable[..., list[PlannedRun]]
Finish = Callable[..., None]
Write = Callable[..., Path]

WRITE = "import sys; open(sys.argv[1], 'w').write('{}')"
WAIT = "import os, sys, time; open(sys.argv[1] + '.pid', 'w').write(str(os.getpid())); time.sleep(500)"


def rule(code: str, *arguments: str) -> dict[str, str]:
    return {"command": f'-c "{code}" {{report}} {" ".join(arguments)}'}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_cut_off_or_failed_is_run_again(planned: Plan, finish: Finish) -> None:
    rows = {"done": rule(WRITE), "cut off": rule(WRITE), "fails": rule("raise SystemExit(3)"), "new": rule(WRITE)}
    runs = planned(rows=rows, sweep=None)
    finish(runs[0])
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "metrics.jsonl").write_text("left over")
    ended = list(execute(runs, jobs=2))
    assert sorted(of.run.row.name for of in ended) == ["cut off", "fails", "new"]
    assert not (runs[1].folder / "metrics.jsonl").exists()
    assert [run.row.name for run in runs if not run.is_finished()] == ["fails"]
    lines = "\n".join(map(str, ended))
    assert re.search(r"two: fails, seed 1: FAILED, see \S+/log\.txt in \d+ s, \d+:\d\d:\d\d left", lines)
    assert re.search(r"^\[3/3\] two: .*, 0:00:00 left$", lines, flags=re.MULTILINE)
    assert [of.run.row.name for of in execute(runs, jobs=1)] == ["fails"]


def test_a_whole_training_is_not_done_again_for_another_evaluation(planned: Plan, finish: Finish) -> None:
    (run,) = planned(rows={"lpc": {}}, sweep=None)
    finish(run)
    (run.folder / "trained").touch()
    (changed,) = planned(rows={"lpc": {}}, sweep=None, support={"pairs": [5, 6]})
    assert not changed.is_finished()
    assert changed.is_trained()
    (other,) = planned(rows={"lpc": {"codebook_size": 3}}, sweep=None, support={"pairs": [5, 6]})
    assert not other.is_trained()
    fake = PlannedRun(**{**vars(changed), "command": ("-c", WRITE, str(run.folder / "report-5.json"))})
    list(execute([fake], jobs=1))
    assert (run.folder / "trained").exists()
    assert not (run.folder / "report-4.json").exists()
    fake = PlannedRun(**{**vars(other), "command": ("-c", "pass")})
    list(execute([fake], jobs=1))
    assert not (run.folder / "trained").exists()


def test_ending_the_study_ends_its_runs(planned: Plan, tmp_path: Path) -> None:
    runs = planned(rows={"short": rule(WRITE), **{name: rule(WAIT) for name in "abcd"}}, sweep=None)
    all_ended = execute(runs, jobs=2)
    assert next(all_ended).run.row.name == "short"
    until(lambda: any(file.read_text() for file in tmp_path.glob("runs/two/*/*/report.json.pid")))
    all_ended.close()
    pids = [int(file.read_text()) for file in tmp_path.glob("runs/two/*/*/report.json.pid") if file.read_text()]
    assert pids
    assert not any(map(is_alive, pids))


def test_what_fills_a_cache_runs_first(planned: Plan, tmp_path: Path) -> None:
    cache = tmp_path / "filled"
    fill = "import sys, time; time.sleep(float(sys.argv[2])); open(sys.argv[1], sys.argv[3]).close()"
    rows = {"first": {}, "second": {"codebook_size": 2}, "third": {"codebook_size": 4}}
    options = {
        "latent_mode": "lpc",
        "lr": "default",
        "freeze_backbone": True,
        "latent_lr": 0.01,
        "cache_hidden_states": "{output}/hidden",
        "valid_data": {"d": "x"},
        "train_data": ["x"],
    }
    runs = []
    for run in planned(rows=rows, sweep=None, options=options):
        arguments = ("0.5", "x") if run.row.name == "first" else ("0", "r")
        runs.append(PlannedRun(**{**vars(run), "command": ("-c", fill, str(cache), *arguments)}))
    ended = [of.run.row.name for of in execute(runs, jobs=3)]
    assert ended[0] == "first"
    assert sorted(ended) == ["first", "second", "third"]
    assert all("Error" not in (run.folder / "log.txt").read_text() for run in runs)


def test_data_are_made_once(write_study: Write, tmp_path: Path) -> None:
    append = "-c \"open(r'{data}/made', 'a').write('x')\""
    study = read_study(write_study(data={"two": [append, append]}))
    for _ in range(2):
        make_data(study, tmp_path, "two")
    assert (tmp_path / "data" / "two" / "made").read_text() == "xx"
    with pytest.raises(UserError, match=r"data\.two: \S+ was made by other commands; remove it"):
        make_data(read_study(write_study(data={"two": [append]})), tmp_path, "two")
    with pytest.raises(UserError, match=r"data\.three: `-c raise SystemExit\(3\)` ended with 3"):
        make_data(read_study(write_study(data={"three": ["-c 'raise SystemExit(3)'"]})), tmp_path, "three")


def start(file: Path, output: Path) -> subprocess.Popen[str]:
    """The program itself, which SIGINT ends, as it does not where the shell has started the tests in the background."""
    command = [sys.executable, "-m", "megatron_lpc.study", str(file), "--output", str(output), "--jobs", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, stdout=pipe, stderr=subprocess.STDOUT, preexec_fn=_let_interrupts_end)


def _let_interrupts_end() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_an_ended_study_goes_on(sent: signal.Signals, write_study: Write, tmp_path: Path) -> None:
    """A rule that waits at first and writes when it is started again."""
    result = '{"data": {"d": {"metrics": {"none": {"rewards/accuracies": 0.%s}}}}}'
    (tmp_path / "rule.py").write_text(
        "import os, pathlib, sys, time\n"
        "report, seed, begun = sys.argv[1:]\n"
        "begun = pathlib.Path(begun)\n"
        "waits = seed == '2' and not begun.exists()\n"
        "if waits:\n"
        "    begun.write_text(str(os.getpid()))\n"
        "    sys.stdin.read()\n"
        "    sys.exit(1)\n"
        f"open(report, 'w').write({result!r} % seed)\n"
    )
    command = f"{tmp_path}/rule.py {{report}} {{seed}} {{output}}/begun"
    file = write_study(data={"two": []}, rows={"rule": {"command": command}}, sweep=None, metrics=["prior(d)"])
    output, whole = tmp_path / "output", tmp_path / "whole"
    study = start(file, output)
    begun, table = output / "begun", output / "table.md"
    until(lambda: begun.exists() and begun.read_text() != "" and table.exists())
    other = start(file, output)
    assert "another study is running in this folder" in other.communicate()[0]
    assert other.returncode == 2
    study.send_signal(sent)
    study.communicate()
    assert study.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(sent, -9)
    until(lambda: not is_alive(int(begun.read_text())))
    again = start(file, output)
    assert "1 runs to do, 2 at a time" in again.communicate()[0]
    assert again.returncode == 0
    whole.mkdir()
    (whole / "begun").touch()
    uninterrupted = start(file, whole)
    uninterrupted.communicate()
    assert uninterrupted.returncode == 0
    assert table.read_text() == (whole / "table.md").read_text()
    assert "| rule | 15.0 ± " in table.read_text()


def test_unfinished_runs_of_equal_options_are_one(planned: Plan) -> None:
    assert len(unfinished(planned())) == 6
