"""When a run ends before its last step: it saves a checkpoint and exits cleanly, on all ranks after the same step."""

from __future__ import annotations

import signal

import torch

from megatron_lpc.config import Config
from megatron_lpc.training.collectives import on_any_rank


class ExitRequest:
    """SIGTERM, which a scheduler sends before it takes the machine away."""

    def __init__(self, config: Config, began: float) -> None:
        self._has_signal = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._has_signal = True

    def is_due(self, iteration: int, device: torch.device) -> bool:
        """Whether the run exits after `iteration` steps; the same on all ranks.

        Collectives: one all-reduce over the world.
        """
        return on_any_rank(self._has_signal, device)
