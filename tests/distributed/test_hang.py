"""A rank that is stopped or dies: the run ends in time, with one message that names it."""

from __future__ import annotations

import re
import signal
import time
from os import kill
from pathlib import Path

import pytest
from watched_run import LAUNCHER, TORCHRUN, watched_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
FOUR = ("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2")
STOPPED = "is stopped (SIGSTOP)"
ENDED = "has ended without a word"


@pytest.mark.parametrize("launcher", [LAUNCHER, TORCHRUN], ids=["launch", "torchrun"])
@pytest.mark.parametrize(
    ("number", "rank", "processes", "flags"),
    [
        (signal.SIGSTOP, 1, 2, FOUR[:2]),
        (signal.SIGSTOP, 0, 2, ()),
        (signal.SIGSTOP, 2, 4, FOUR),
        (signal.SIGKILL, 1, 2, ()),
        (signal.SIGKILL, 0, 2, ()),
        (signal.SIGKILL, 3, 4, FOUR),
    ],
    ids=["stop 1", "stop 0", "stop 2 of 4", "kill 1", "kill 0", "kill 3 of 4"],
)
def test_one_message(
    tiny_run, tmp_path: Path, launcher: tuple[str, ...], number: int, rank: int, processes: int, flags: tuple[str, ...]
) -> None:
    own = ["--config", tiny_run.config, "--train-iters", "100000", "--distributed-timeout-minutes", "1", *flags]
    with watched_run(
        tmp_path, *own, "--save-interval", "5", "--keep-last", "2", launcher=launcher, processes=processes
    ) as run:
        run.wait_until(lambda: run.saved)
        victim = run.workers[rank]
        kill(victim, number)
        began, steps = time.monotonic(), run.steps
        code = run.end()
        seconds = time.monotonic() - began
        own_words = [line for line in run.errors if not line.startswith("error: the process of rank")]

    assert len(own_words) == 1, run.text[-6000:]
    why = STOPPED if number == signal.SIGSTOP else ENDED
    message = re.fullmatch(
        rf"error: rank {rank} \(host \S+, process {victim}\) {re.escape(why)}: "
        r"its last known step is (\d+), and it was in "
        rf"([^;]+?)((; ranks? [\d, ]+ waits? in [^;]+)+)",
        own_words[0],
    )
    assert message, own_words
    assert abs(int(message[1]) - steps) <= 5
    assert seconds < 75
    assert code == (1 if launcher is TORCHRUN or number == signal.SIGSTOP else 137)
    traces = run.text.count("Traceback (most recent call last)")
    assert traces == (1 if launcher is TORCHRUN else 0), "torchrun's own"
