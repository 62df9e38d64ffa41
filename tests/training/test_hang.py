"""Which rank is said to keep the others waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from megatron_lpc.training import phases
from megatron_lpc.training.hang import behind, unwell
from megatron_lpc.training.phases import STEP, Beat, doing, now_doing, own_beat, steps_done

NOW = 1000.0


def beat(rank: int, **other: Any) -> Beat:
    values = {
        "rank": rank,
        "host": f"host{rank // 2}",
        "processes": f"space {rank // 2}",
        "pid": 100 + rank,
        "step": 7,
        "phase": "forward",
        "place": "all_reduce",
        "phases": 20,
        "time": NOW - 1,
        "speaks": False,
    }
    return Beat(**(values | other))


def test_all_are_well() -> None:
    assert unwell([beat(0), beat(1)], NOW) is None
    assert behind([beat(0), beat(1)]) is None
    assert behind([]) is None


def test_a_silent_rank_and_what_others_wait_in() -> None:
    beats = [beat(0), beat(1), beat(2, time=NOW - 70, step=6, phase="save", place="fsync"), beat(3, place="recv")]
    found = unwell(beats, NOW)
    assert found
    assert found.sentence() == (
        "rank 2 (host host1, process 102) has given no sign of life for 70 s: its last known step is 6, and it was in "
        "save (fsync); ranks 0, 1 wait in forward (all_reduce) after step 7; "
        "rank 3 waits in forward (recv) after step 7"
    )


def test_a_rank_that_speaks_for_itself_is_not_blamed() -> None:
    assert unwell([beat(0), beat(1, time=NOW - 70, speaks=True)], NOW) is None
    assert behind([beat(0), beat(1, phases=19, speaks=True)]) is None


def test_a_rank_that_is_behind() -> None:
    found = behind([beat(0), beat(1, phases=18, phase="between steps", place="read"), beat(2)])
    assert found
    assert found.sentence().startswith(
        "rank 1 (host host0, process 101) is behind the others: its last known step is 7, "
    )


def test_a_whole_host_is_named_in_short() -> None:
    found = unwell([beat(0), *(beat(rank, time=0.0) for rank in range(1, 9))], NOW)
    assert found
    assert "process 103) has given no sign of life for 1000 s and 5 more ranks: its last known step" in found.sentence()


def test_processes_of_this_machine() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        here = beat(1, processes=phases.space_of_processes(), pid=process.pid)
        assert unwell([here], NOW) is None
        process.send_signal(signal.SIGSTOP)
        _until(lambda: "is stopped (SIGSTOP)" in _sentence(here))
        process.kill()
        _until(lambda: "has ended without a word" in _sentence(here))
    assert unwell([beat(1, pid=process.pid)], NOW) is None, "of another machine nothing is known"


def _sentence(one: Beat) -> str:
    found = unwell([one], NOW)
    return found.sentence() if found else ""


def _until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def fresh_phases() -> Any:
    phases.begin()
    yield
    phases.begin()


def test_what_a_rank_says_of_itself(fresh_phases: None) -> None:
    assert (own_beat().phase, own_beat().step, own_beat().pid) == ("start-up", 0, os.getpid())
    steps_done(3)
    now_doing("between steps")
    before = own_beat()
    with doing("evaluation"):
        assert own_beat().phase == "evaluation"
        assert own_beat().phases == before.phases + 1
    assert (own_beat().phase, own_beat().phases, own_beat().step) == ("between steps", before.phases + 2, 3)
    now_doing(STEP)
    assert own_beat().phase == STEP
    assert _forward().phase == "forward"


def test_where_it_failed(fresh_phases: None) -> None:
    now_doing(STEP)
    try:
        with doing("save"):
            _failing()
    except ZeroDivisionError as error:
        phases.end(error)
    assert (own_beat().phase, own_beat().place, own_beat().speaks) == ("save", "_failing", True)


def _forward() -> Beat:
    def forward_step() -> Beat:
        return own_beat()

    return forward_step()


def _failing() -> None:
    raise ZeroDivisionError
