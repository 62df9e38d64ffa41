"""When a run saves a checkpoint because it is asked to, and goes on or exits, on all ranks after the same step."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from megatron_lpc.command_line import is_first_rank, warn
from megatron_lpc.config import Config
from megatron_lpc.platform.process_groups import ProcessGroups
from megatron_lpc.training.collectives import largest_on_any_rank

_DEFAULT_SHUTDOWN_TIMEOUT = 30
"""torchrun's, in seconds."""
_SAME_SIGNAL_SECONDS = 1.0
"""In which a second SIGINT is the first one again: a launcher passes on what the terminal has sent to all."""


def hold_requests_to_save() -> None:
    """Until there is something to save, SIGUSR1 waits where `launch` has blocked it, and is ignored elsewhere."""
    if signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Due(IntEnum):
    """What a run does after a step; of several ranks, the largest holds."""

    NOTHING = 0
    SAVE = 1
    EXIT = 2
    """After a save."""


class ExitRequest:
    """The reasons to save a checkpoint and exit early, or to save and go on; a context manager.

    - SIGTERM, which a scheduler sends before it takes the machine away. More of them change nothing. Megatron-LM needs
      `exit_signal_handler` for it.
    - SIGINT, Ctrl-C: as SIGTERM. After it another one, or the SIGTERM that torchrun makes of another one, ends the
      process at once.
    - SIGUSR1: saves, and goes on.
    - `exit_interval`, as in Megatron-LM: after a step whose number is a multiple of it.
    - `exit_duration_in_mins`, as in Megatron-LM: after the step in which the run has lasted so long on some rank.

    Args:
        config: the options.
        began: when this process began to build the run, by `time.monotonic`.
        train_iters: steps of the whole run; the last one ends it anyhow and is no early exit by `exit_interval`.
    """

    def __init__(self, config: Config, began: float, train_iters: int) -> None:
        self._interval = config.training.exit_interval
        minutes = config.training.exit_duration_in_mins
        self._deadline = None if minutes is None else began + 60 * minutes
        self._train_iters = train_iters
        self._has_signal = False
        self._interrupted: float | None = None
        """When the first SIGINT came."""
        self._saves_asked = self._saves_seen = 0
        self._handlers: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> ExitRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._on_stop)
        self._handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._on_save)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # Which `launch` blocks.
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            # A run that fails has something to say when the launcher ends it.
            if kind is None or number != signal.SIGTERM:
                signal.signal(number, handler)

    def _on_stop(self, number: int, _: object) -> None:
        if os.getpid() != self._pid:
            return  # A fork, which writes a checkpoint.
        now = time.monotonic()
        if self._interrupted is not None and now > self._interrupted + _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = now
            if is_first_rank():  # Not by `print`, in the midst of which it may have come.
                os.write(2, b"interrupted: the run exits after this step, saved; once more ends it at once\n")
        self._has_signal = True

    def _on_save(self, *_: object) -> None:
        self._saves_asked += 1

    def due(self, iteration: int, groups: ProcessGroups) -> Due:
        """What the run does after `iteration` steps; the same on all ranks, though their clocks and signals differ.

        Collectives: that of `largest_on_any_rank`.
        """
        return Due(largest_on_any_rank(self._due_here(iteration), groups))

    def _due_here(self, iteration: int) -> Due:
        asked = self._saves_asked
        is_asked, self._saves_seen = asked > self._saves_seen, asked
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        ends_interval = self._interval is not None and iteration % self._interval == 0
        if self._has_signal or is_late or (ends_interval and iteration < self._train_iters):
            return Due.EXIT
        return Due.SAVE if is_asked else Due.NOTHING


def shutdown_timeout(environment: Mapping[str, str]) -> int | None:
    """Seconds between SIGTERM and SIGKILL that the torchrun agent of this process leaves to its workers.

    A value that the agent got by its flag `--shutdown-timeout` is not seen here.

    Args:
        environment: variables of this process.

    Returns:
        None where torchrun did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    if not _agent_takes_timeout():
        return _DEFAULT_SHUTDOWN_TIMEOUT
    names = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")  # The first one goes before, as in torchrun.
    return next((int(environment[name]) for name in names if name in environment), _DEFAULT_SHUTDOWN_TIMEOUT)


def _agent_takes_timeout() -> bool:
    """torch 2.12 and later."""
    from torch.distributed.launcher import LaunchConfig  # Only here: it imports all of torchrun.

    return "shutdown_timeout" in {field.name for field in dataclasses.fields(LaunchConfig)}


class SaveWatch:
    """Warns, once, when a save takes so long that the torchrun agent would kill it."""

    def __init__(self) -> None:
        self._timeout = shutdown_timeout(os.environ)

    def saved(self, seconds: float) -> None:
        """A save is complete that took so many seconds."""
        if self._timeout is None or seconds < self._timeout:
            return
        remedy = "--exit-duration-in-mins ends a run in time (torch 2.12 and later can wait longer)"
        if _agent_takes_timeout():
            ample = 60 * math.ceil(2 * seconds / 60)
            remedy = f"start torchrun with TORCH_ELASTIC_SHUTDOWN_TIMEOUT={ample} or more in its environment"
        warn(
            f"saving a checkpoint took {seconds:.0f} s, and torchrun kills its workers {self._timeout} s after "
            f"SIGTERM, in which the step that runs, its evaluation and the save must fit; {remedy}"
        )
        self._timeout = None
