"""A training whose processes are killed, and that is started again or restarted by its launcher."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from fork_server import start_forked
from process_tree import children, descendants, is_alive, kill
from run_files import newest_checkpoint, steps_done

from megatron_lpc.training.metrics_file import METRICS_FILE

PROCESSES = 2
PATIENCE = 240
"""Seconds within which whatever is waited for happens on a busy machine."""


@dataclass(frozen=True)
class Plan:
    """When to kill what."""

    moment: str
    """`start-up`, `in a save` or `anywhere`."""
    victims: str
    """`worker`, `workers`, or `tree`: the launcher and all that it started."""
    steps: int = 0
    """To wait for first, from the checkpoint on; not at start-up."""


@dataclass(frozen=True)
class Kill:
    """One that was done, and what it left."""

    plan: Plan
    restarted: bool
    """By the launcher."""
    in_save: bool
    """Whether a checkpoint was half written."""
    saved: int
    """Step of the newest checkpoint."""
    lost_steps: int
    """Done after it."""
    gone_seconds: float
    """Until all processes had ended that were to."""


@dataclass
class KilledRun:
    """One training, through however many launches."""

    flags: list[str]
    """Of the training, `--save` too."""
    save: Path
    folder: Path
    """Of its output and of its temporary files."""
    max_restarts: int = 0
    launches: int = 0
    launcher: BaseProcess | None = None
    _restarts: int = 0
    _old: set[int] = field(default_factory=set)
    """Workers that were killed, or ended as others were."""

    def start(self) -> None:
        """The launcher; its workers appear later."""
        temporary = self.folder / "temporary"
        temporary.mkdir(parents=True, exist_ok=True)
        options = ["--standalone", f"--nproc-per-node={PROCESSES}", f"--max-restarts={self.max_restarts}"]
        arguments = [*options, "-m", "megatron_lpc.train", *self.flags]
        self.launcher = start_forked(arguments, self.folder / f"launch-{self.launches:02d}.log", temporary)
        self.launches += 1
        self._restarts = 0

    def finish(self) -> None:
        """Wait for the end of the training, which must be a good one."""
        if self.launcher is None:
            self.start()
        assert self.launcher is not None
        self.launcher.join(10 * PATIENCE)
        assert self.launcher.exitcode == 0, self.output()

    def output(self) -> str:
        """Of the latest launch: its end."""
        return (self.folder / f"launch-{self.launches - 1:02d}.log").read_text(errors="replace")[-4000:]

    def kill(self, plan: Plan, chance: random.Random, startup: float) -> Kill:
        """Start the run if it does not run, wait for the moment, and kill.

        Args:
            chance: draws what the plan leaves open.
            startup: seconds from the start of the workers to the first step.
        """
        if self.launcher is None:
            self.start()
        run = self._metrics_inode()
        self._wait(lambda: len(self._workers()) == PROCESSES, "workers")
        began, resumed = time.time(), newest_checkpoint(self.save)
        if plan.moment == "start-up":
            time.sleep(chance.uniform(0, startup))
        else:
            goal = resumed + plan.steps
            self._wait(lambda: self._metrics_inode() != run and steps_done(self.save) >= goal, f"step {goal}")
        if plan.moment == "in a save":
            self._wait(lambda: self._partial_since(began), "a save")
            time.sleep(chance.choice([0, 0.002, 0.01, 0.03, 0.1]))
        elif plan.moment == "anywhere":
            time.sleep(chance.uniform(0, 0.1))
        workers, everyone = self._workers(), self._everyone()
        hit = {"worker": [chance.choice(workers)], "workers": workers, "tree": everyone}[plan.victims]
        in_save = bool(self._partial_since(began))
        killed_at = time.monotonic()
        found = [kill(pid) for pid in hit]
        assert any(found), "the run ended before it was killed"
        self._old.update(workers)
        restarted = plan.victims != "tree" and self._restarts < self.max_restarts
        to_end = everyone[1:] if restarted else everyone
        self._wait(lambda: not any(map(is_alive, to_end)), f"the end of {to_end}", needs_launcher=False)
        gone = time.monotonic() - killed_at
        saved = newest_checkpoint(self.save)
        lost = max(0, steps_done(self.save) - saved)
        if restarted:
            self._restarts += 1
        else:
            self.launcher.join(PATIENCE)
            assert self.launcher.exitcode not in (0, None)
            self.launcher = None
        return Kill(plan, restarted, in_save, saved, lost, round(gone, 2))

    def end(self) -> None:
        """Leave no process, whatever has happened."""
        if self.launcher is not None:
            for pid in self._everyone():
                kill(pid)
            self.launcher.join()

    def processes(self) -> list[int]:
        """The workers, by rank, once all are there; then also those that have ended, for a moment."""
        assert self.launcher is not None
        assert self.launcher.pid is not None
        return children(self.launcher.pid)

    def _workers(self) -> list[int]:
        return [pid for pid in self.processes() if pid not in self._old]

    def _everyone(self) -> list[int]:
        """The launcher, and all that it has started."""
        assert self.launcher is not None
        assert self.launcher.pid is not None
        return [self.launcher.pid, *descendants(self.launcher.pid)]

    def _metrics_inode(self) -> int:
        """Another one as soon as a run has begun its steps."""
        try:
            return (self.save / METRICS_FILE).stat().st_ino
        except OSError:
            return 0

    def _partial_since(self, began: float) -> bool:
        """Whether a checkpoint is half written, by the processes that have begun then."""
        try:
            return any(path.stat().st_ctime > began for path in self.save.glob(".iter_*.tmp"))
        except FileNotFoundError:
            return True

    def _wait(self, condition: Callable[[], bool], what: str, needs_launcher: bool = True) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if needs_launcher and self.launcher is not None and not self.launcher.is_alive():
                raise AssertionError(f"the run ended while {what} was waited for: {self.output()}")
            assert time.monotonic() < end, f"waited {PATIENCE} s for {what}: {self.output()}"
            time.sleep(0.005)
