"""Signals to launcher, ranks and both, at every stage of a run: it ends or goes on as documented, and work is kept."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from process_tree import descendants
from watched_run import LAUNCHER, WatchedRun, watched_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
EVALUATED = 3


def _in_start_up(run: WatchedRun) -> None:
    run.wait_until(lambda: len(run.workers) == 2)
    time.sleep(3)
    assert run.steps == 0


def _in_steps(run: WatchedRun) -> None:
    run.wait_until(lambda: run.steps >= EVALUATED - 1)


def _in_evaluation(run: WatchedRun) -> None:
    run.wait_until(lambda: run.steps >= EVALUATED)
    time.sleep(1)
    assert run.steps == EVALUATED, "it is being evaluated"


WHEN: dict[str, Callable[[WatchedRun], None]] = {
    "start-up": _in_start_up,
    "steps": _in_steps,
    "evaluation": _in_evaluation,
}
TO: dict[str, Callable[[WatchedRun], list[int]]] = {
    "launcher": lambda run: [run.process.pid],
    "rank": lambda run: run.workers[1:],
    "all": lambda run: [run.process.pid, *descendants(run.process.pid)],
}
SAVES = ("--save-interval", "1", "--keep-last", "2")
ASKED = re.compile(
    r"^The run saves a checkpoint after step (\d+)/100000, as SIGUSR1 asks, and goes on\.$", re.MULTILINE
)


@pytest.fixture
def flags(tiny_run, tmp_path: Path) -> list[str]:
    """Of a run without end, whose evaluation after the third step lasts."""
    many = tmp_path / "many.jsonl"
    many.write_text(Path(tiny_run.train_data).read_text() * 40)
    evaluation = ["--eval-interval", str(EVALUATED), "--valid-data", f"many={many}"]
    return ["--config", tiny_run.config, "--train-iters", "100000", *evaluation]


@pytest.mark.parametrize(
    ("when", "to", "numbers", "code", "more"),
    [
        ("steps", "launcher", [TERM, TERM], 143, ()),
        ("steps", "all", [TERM, TERM], 143, SAVES),
        ("steps", "all", [TERM], 143, (*SAVES, "--async-save")),
        ("steps", "rank", [TERM], 0, SAVES),
        ("evaluation", "all", [INT], 130, ()),
        ("evaluation", "rank", [INT], 0, ()),
    ],
    ids=["TERM twice", "TERM twice to all in saves", "async saves", "TERM to a rank", "INT to all", "INT to a rank"],
)
def test_it_ends_and_keeps_its_work(
    flags: list[str], tmp_path: Path, when: str, to: str, numbers: list[int], code: int, more: tuple[str, ...]
) -> None:
    with watched_run(tmp_path, *flags, *more) as run:
        WHEN[when](run)
        steps = run.steps
        _send(run, to, numbers)
        assert run.end() == code, run.text[-6000:]
        assert f"The run exits early, after step {run.saved[-1]}/100000; its checkpoint is complete." in run.text
        assert run.saved[-1] >= steps
        assert "Traceback" not in run.text, run.text[-6000:]
        assert run.errors == []


def test_usr1_saves_and_goes_on(flags: list[str], tmp_path: Path) -> None:
    with watched_run(tmp_path, *flags) as run:
        for place, (when, to) in enumerate([("start-up", "launcher"), ("evaluation", "rank"), ("", "all")], 1):
            WHEN.get(when, lambda run: None)(run)
            steps = run.steps
            _send(run, to, [USR1])
            run.wait_until(lambda place=place: len(ASKED.findall(run.text)) >= place)
            assert steps <= int(ASKED.findall(run.text)[-1]) == run.saved[-1]
        run.wait_until(lambda: run.steps > run.saved[-1])
        _send(run, "launcher", [TERM])
        assert run.end() == 143
        assert "Traceback" not in run.text, run.text[-6000:]
        assert run.errors == []


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130)])
def test_it_ends_in_start_up(flags: list[str], tmp_path: Path, number: int, code: int) -> None:
    with watched_run(tmp_path, *flags) as run:
        WHEN["start-up"](run)
        _send(run, "launcher", [number])
        assert run.end(60) == code, run.text[-6000:]
        assert run.saved == []


def test_a_second_interrupt_ends_it_at_once(flags: list[str], tmp_path: Path) -> None:
    with watched_run(tmp_path, *flags) as run:
        WHEN["evaluation"](run)
        _send(run, "launcher", [INT])
        time.sleep(1.5)
        assert run.steps == EVALUATED, "it is being evaluated"
        _send(run, "launcher", [INT])
        assert run.end(60) == 130, run.text[-6000:]
        assert run.saved == []
        assert "interrupted: the run exits after this step, saved; once more ends it at once" in run.text


@pytest.mark.parametrize("number", [TERM, INT])
def test_the_program_alone(flags: list[str], tmp_path: Path, number: int) -> None:
    with watched_run(tmp_path, *flags, launcher=()) as run:
        WHEN["steps"](run)
        os.kill(run.process.pid, number)
        assert run.end() == 0, run.text[-6000:]
        assert f"after step {run.saved[-1]}/100000; its checkpoint is complete" in run.text
        assert "Traceback" not in run.text


def test_restarts_resume_without_a_flag(flags: list[str], tmp_path: Path) -> None:
    with watched_run(tmp_path, *flags, *SAVES, "--eval-interval", "0", launcher=(*LAUNCHER, "--max-restarts=2")) as run:
        run.wait_until(lambda: len(run.saved) > 1)
        before = run.workers
        os.kill(before[1], signal.SIGKILL)
        run.wait_until(lambda: len(run.workers) == 2 and not set(run.workers) & set(before))
        steps = run.steps
        run.wait_until(lambda: run.steps > steps)
        _send(run, "launcher", [TERM])
        assert run.end() == 143
    steps_shown = [int(step) for step in re.findall(r"^step (\d+)/", run.text, re.MULTILINE)]
    assert steps_shown.count(1) == 1, "it has not begun again"


def _send(run: WatchedRun, to: str, numbers: list[int]) -> None:
    for place, number in enumerate(numbers):
        time.sleep(0.4 if place else 0)
        for pid in TO[to](run):
            os.kill(pid, number)
