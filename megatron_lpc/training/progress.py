"""What the terminal shows of a run: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

_SHOWN = {
    "loss": "loss {:.4f}",
    "rewards/margins": "margin {:.4f}",
    "rewards/accuracies": "accuracy {:.1%}",
    "lpc/kl": "KL {:.4f}",
    "tokens_per_sec": "{:,.0f} tokens/s",
}
"""Metric -> how it is shown."""
_TIMED_STEPS = 50


class ConsoleProgress:
    """Progress of a run of `total_iters` steps of which `start_iter` are done.

    Args:
        line_interval: steps between plain lines; the live bar moves with every step.
        console: where to show it; standard output when not given.
    """

    def __init__(
        self, total_iters: int, start_iter: int, line_interval: int = 1, console: Console | None = None
    ) -> None:
        self._total_iters = total_iters
        self._start_iter = start_iter
        self._line_interval = line_interval
        self._console = console or Console()
        self._clock: deque[tuple[float, int]] = deque(maxlen=_TIMED_STEPS + 1)
        """(seconds, steps done) of the last steps."""
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=total_iters, completed=start_iter)

    def __enter__(self) -> ConsoleProgress:
        self._clock.append((time.monotonic(), self._start_iter))
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Show that `iteration` steps are done, and the metrics of the last."""
        self._clock.append((time.monotonic(), iteration))
        status = "  ".join([*_shown(metrics), f"{self._time_left(iteration)} left"])
        if self._bar:
            self._bar.update(self._task, completed=iteration, description=status)
        elif iteration % self._line_interval == 0 or iteration == self._total_iters:
            self.message(f"step {iteration}/{self._total_iters}  {status}")

    def evaluation(self, iteration: int, name: str, metrics: Mapping[str, float]) -> None:
        """Show the metrics of the evaluation called `name` after `iteration` steps."""
        self.message("  ".join([f"evaluation of {name} at step {iteration}:", *_shown(metrics)]))

    def message(self, text: str) -> None:
        """Print a line; above the bar when there is one."""
        # Soft wrap: a line of a log file is not cut at a terminal's width. `Text`: no markup.
        self._console.print(Text(text), soft_wrap=True)

    def _time_left(self, iteration: int) -> timedelta:
        began, first = self._clock[0]
        now, _ = self._clock[-1]
        seconds_per_step = (now - began) / max(1, iteration - first)
        return timedelta(seconds=round(seconds_per_step * (self._total_iters - iteration)))


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [form.format(metrics[name]) for name, form in _SHOWN.items() if name in metrics]
