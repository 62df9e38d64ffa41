"""A run that is killed again and again, and each time started again, ends as one that nothing disturbs.

    pytest -m slow -s tests/distributed/test_kills.py

kills 50 times and prints what was hit. The moments and victims are drawn from a fixed seed.
"""

from __future__ import annotations

import fcntl
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from killed_run import Kill, KilledRun, Plan
from run_files import checksums, metrics, names, steps_done

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(3600)]

SAVE_INTERVAL = 5
MODES = {
    "sync": ["--use-distributed-optimizer"],
    "async": ["--tensor-model-parallel-size", "2", "--async-save"],
}
MOST_LOST = {"sync": SAVE_INTERVAL, "async": 2 * SAVE_INTERVAL}
"""Steps; an asynchronous save is complete before the next one begins."""
TWO = [Plan("in a save", "tree", SAVE_INTERVAL + 1), Plan("anywhere", "worker", 2 * SAVE_INTERVAL + 1)]


def many(chance: random.Random) -> Iterator[Plan]:
    """25 kills."""
    for _ in range(25):
        moment = chance.choices(["start-up", "in a save", "anywhere"], [20, 40, 40])[0]
        victims = chance.choice(["worker", "workers", "tree"])
        yield Plan(moment, victims, 0 if moment == "start-up" else chance.randint(1, 7))


@pytest.mark.parametrize(
    ("mode", "steps", "is_whole"),
    [
        pytest.param("async", 25, False, id="two-kills"),
        pytest.param("sync", 200, True, id="sync", marks=pytest.mark.slow),
        pytest.param("async", 200, True, id="async", marks=pytest.mark.slow),
    ],
)
def test_kills_change_nothing(tiny_run, tmp_path: Path, mode: str, steps: int, is_whole: bool) -> None:
    chance = random.Random(1)
    flags = ["--config", tiny_run.config, "--hidden-dropout", "0.1", "--train-iters", str(steps), *MODES[mode]]
    flags += ["--save-interval", str(SAVE_INTERVAL), "--keep-last", "2", "--eval-interval", "12", "--load", "auto"]
    cache = tmp_path / "cache"
    flags += ["--data-cache-path", str(cache)]
    calm, killed = tmp_path / "calm", tmp_path / "killed"

    with run_of([*flags, "--save", str(calm)], calm, tmp_path / "of-calm") as run:
        run.start()
        began = time.monotonic()
        while not steps_done(calm):
            time.sleep(0.01)
        startup = time.monotonic() - began
        run.finish()
    kills: list[Kill] = []
    with run_of([*flags, "--save", str(killed)], killed, tmp_path / "of-killed", max_restarts=2) as run:
        for plan in many(chance) if is_whole else TWO:
            kills.append(run.kill(plan, chance, startup))
            print(f"[{time.monotonic() - began:5.0f} s] {kills[-1]}", flush=True)
        run.finish()
    print(summary(mode, kills, run.launches))

    assert checksums(killed, steps) == checksums(calm, steps)
    assert metrics(killed) == metrics(calm)
    assert max(kill.lost_steps for kill in kills) <= MOST_LOST[mode]
    assert any(kill.in_save for kill in kills)
    assert any(kill.restarted for kill in kills)
    assert kills[-1].saved > 0, "nothing was resumed"
    assert names(killed) == names(calm), "something is left over"
    assert names(cache) == cached(cache)
    assert not [name for name in names(tmp_path / "of-killed/temporary") if not name.startswith("torchelastic_")]
    with (killed / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def run_of(flags: list[str], save: Path, folder: Path, max_restarts: int = 0) -> Iterator[KilledRun]:
    """A run of which no process is left in the end."""
    run = KilledRun(flags, save, folder, max_restarts)
    try:
        yield run
    finally:
        run.end()


def cached(folder: Path) -> list[str]:
    """What a cache holds in which nothing is half written: folders of data sets, and their locks."""
    whole = [name for name in names(folder) if not name.startswith(".")]
    return sorted([*whole, *(f".{name}.lock" for name in whole)])


def summary(mode: str, kills: list[Kill], launches: int) -> str:
    """Figures of the whole."""
    hits = Counter((kill.plan.moment, kill.plan.victims) for kill in kills)
    return "\n".join(
        [
            f"{mode}: {len(kills)} kills, {launches} launches, {sum(kill.restarted for kill in kills)} restarts by the "
            f"launcher, {sum(kill.in_save for kill in kills)} with a checkpoint half written; at most "
            f"{max(kill.lost_steps for kill in kills)} steps lost; all processes gone after at most "
            f"{max(kill.gone_seconds for kill in kills)} s",
            *(f"  {moment}, {victims}: {count}" for (moment, victims), count in sorted(hits.items())),
        ]
    )
