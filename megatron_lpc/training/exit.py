"""When a run ends before its last step: it saves a checkpoint and exits cleanly, on all ranks after the same step."""

from __future__ import annotations

import signal
import time

import torch

from megatron_lpc.config import Config
from megatron_lpc.training.collectives import on_any_rank


class ExitRequest:
    """The three reasons to exit early, with the names and the meaning that they have in Megatron-LM.

    - SIGTERM, which a scheduler sends before it takes the machine away.
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

    def is_due(self, iteration: int, device: torch.device) -> bool:
        """Whether the run exits after `iteration` steps; the same on all ranks, though their clocks and signals differ.

        Collectives: one all-reduce over the world.
        """
        return on_any_rank(self._is_due_here(iteration), device)

    def _is_due_here(self, iteration: int) -> bool:
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        ends_interval = self._interval is not None and iteration % self._interval == 0
        return self._has_signal or is_late or (ends_interval and iteration < self._train_iters)
