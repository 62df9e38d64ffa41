"""When a run ends before its last step: it saves a checkpoint and exits cleanly, on all ranks after the same step."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Mapping

from megatron_lpc.command_line import warn
from megatron_lpc.config import Config
from megatron_lpc.platform.process_groups import ProcessGroups
from megatron_lpc.training.collectives import on_any_rank

_DEFAULT_SHUTDOWN_TIMEOUT = 30
"""torchrun's, in seconds."""


class ExitRequest:
    """The three reasons to exit early, with the names and the meaning that they have in Megatron-LM.

    - SIGTERM, which a scheduler sends before it takes the machine away. More of them change nothing. Megatron-LM needs
      `exit_signal_handler` for it.
    - `exit_interval`: after a step whose number is a multiple of it.
    - `exit_duration_in_mins`: after the step in which the run has lasted so long on some rank.

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
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._has_signal = True

    def is_due(self, iteration: int, groups: ProcessGroups) -> bool:
        """Whether the run exits after `iteration` steps; the same on all ranks, though their clocks and signals differ.

        Collectives: that of `on_any_rank`.
        """
        return on_any_rank(self._is_due_here(iteration), groups)

    def _is_due_here(self, iteration: int) -> bool:
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        ends_interval = self._interval is not None and iteration % self._interval == 0
        return self._has_signal or is_late or (ends_interval and iteration < self._train_iters)


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
