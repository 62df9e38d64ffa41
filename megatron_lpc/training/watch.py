"""Everything through which a run is watched: terminal, metrics file, TensorBoard, Weights & Biases.

For one rank of a run; nothing here talks to other ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import torch.distributed as dist
from rich.console import Console

from megatron_lpc.config import Config, print_config, save_resolved
from megatron_lpc.losses import CodeVerdict, code_verdict
from megatron_lpc.training.code_guard import CodeGuard
from megatron_lpc.training.dashboards import Dashboard, open_tensorboard, open_wandb
from megatron_lpc.training.generated import Generated
from megatron_lpc.training.histogram import Histogram
from megatron_lpc.training.metrics_file import METRICS_FILE, MetricsFile
from megatron_lpc.training.progress import ConsoleProgress
from megatron_lpc.training.rank_log import log_step

if TYPE_CHECKING:
    from megatron_lpc.training.build import Run


class Observer(Protocol):
    """What the training loop tells about itself."""

    def step(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Metrics of training step `iteration`; the first is 1."""
        ...

    def evaluations(self, iteration: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Metrics of each validation set, by its name, after `iteration` steps."""
        ...

    def histograms(self, iteration: int, histograms: Mapping[str, Histogram]) -> None:
        """Of an evaluation after `iteration` steps, by `DATA SET/NAME`."""
        ...

    def generations(self, iteration: int, name: str, generated: Sequence[Generated]) -> None:
        """Responses to prompts of the validation set `name` after `iteration` steps; at least one."""
        ...

    def message(self, text: str) -> None:
        """A line at the terminal."""
        ...


@contextmanager
def watch_run(run: Run) -> Iterator[Observer]:
    """A `Watch` on rank 0, which first shows and saves the options; the other ranks stay silent."""
    if dist.get_rank() != 0:
        yield SilentWatch()
        return
    with Watch(run.config, run.train_iters, run.start.iteration) as watch:
        print_config(run.config)
        if run.config.checkpoint.save:
            save_resolved(run.config, Path(run.config.checkpoint.save) / "config.yaml")
        for note in run.notes:
            watch.message(note)
        yield watch


class SilentWatch:
    """Shows nothing; only the log of this rank, if there is one, has a line per step."""

    def step(self, iteration: int, metrics: Mapping[str, float]) -> None:
        log_step(iteration, metrics)

    def evaluations(self, iteration: int, results: Mapping[str, Mapping[str, float]]) -> None: ...

    def histograms(self, iteration: int, histograms: Mapping[str, Histogram]) -> None: ...

    def generations(self, iteration: int, name: str, generated: Sequence[Generated]) -> None: ...

    def message(self, text: str) -> None: ...


class Watch:
    """Shows and keeps the metrics of a run; a context manager.

    Under `--save` it leaves `metrics.jsonl` (see `metrics_file`) and the folder `tensorboard`; both continue where a
    resumed run stands. Iterations are steps done: the first is 1. Every step moves the progress; each `log_interval`-th
    and the last are kept.

    Args:
        total_iters: steps of the whole run.
        start_iter: steps done before this process.
        console: the terminal; standard output when not given.

    Raises:
        ConfigError: Weights & Biases is asked for and not installed.
        ValueError: `metrics.jsonl` holds something else than metrics.
    """

    def __init__(self, config: Config, total_iters: int, start_iter: int, console: Console | None = None) -> None:
        self._log_interval = config.logging.log_interval
        self._total_iters = total_iters
        self._code_guard = CodeGuard(config, total_iters)
        self._num_codes = config.latent.codebook_size
        save = Path(config.checkpoint.save) if config.checkpoint.save else None
        self._metrics_file: MetricsFile | None = None
        self._dashboards: list[Dashboard] = []
        with ExitStack() as stack:  # Closes what is open should a later part fail.
            if config.logging.wandb_project:
                self._dashboards.append(stack.enter_context(open_wandb(config)))
            if save:
                metrics_file = MetricsFile(save / METRICS_FILE, start_iter, is_complete=start_iter == total_iters)
                self._metrics_file = stack.enter_context(metrics_file)
            if save and config.logging.tensorboard:
                self._dashboards.append(stack.enter_context(open_tensorboard(save, start_iter)))
            self._progress = ConsoleProgress(total_iters, start_iter, self._log_interval, console)
            self._open = stack.pop_all()

    def __enter__(self) -> Watch:
        self._open.enter_context(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def step(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Metrics of training step `iteration`."""
        log_step(iteration, metrics)
        self._progress.step(iteration, metrics)
        if iteration % self._log_interval == 0 or iteration == self._total_iters:
            self._keep(iteration, metrics)
        told = self._code_guard.step(iteration, metrics)
        if told is not None:
            self.message(told)

    def evaluations(self, iteration: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Metrics of each validation set, by its name, after `iteration` steps."""
        for name, metrics in results.items():
            self.evaluation(iteration, name, metrics)
        for name, verdict in _verdicts(results, self._num_codes).items():
            self.message(f"codes on {name} at step {iteration}: {verdict.state} ({verdict.why})")

    def evaluation(self, iteration: int, name: str, metrics: Mapping[str, float]) -> None:
        """Metrics of an evaluation called `name` (data set and latent) after `iteration` steps.

        TensorBoard and Weights & Biases have them under `eval/<name>/`.
        """
        self._progress.evaluation(iteration, name, metrics)
        self._keep(iteration, metrics, name)

    def histograms(self, iteration: int, histograms: Mapping[str, Histogram]) -> None:
        """Of an evaluation after `iteration` steps, by `DATA SET/NAME`; only dashboards have them, under `eval/`."""
        named = {f"eval/{name}": histogram for name, histogram in histograms.items()}
        for dashboard in self._dashboards:
            dashboard.histograms(iteration, named)

    def generations(self, iteration: int, name: str, generated: Sequence[Generated]) -> None:
        """Responses to prompts of the validation set `name`: dashboards have them as `eval/<name>/generations`."""
        for dashboard in self._dashboards:
            dashboard.generations(iteration, f"eval/{name}/generations", generated)

    def message(self, text: str) -> None:
        """A line at the terminal."""
        self._progress.message(text)

    def _keep(self, iteration: int, metrics: Mapping[str, float], evaluation: str | None = None) -> None:
        if self._metrics_file:
            self._metrics_file.write(iteration, metrics, evaluation)
        prefix = f"eval/{evaluation}/" if evaluation else ""
        named = {prefix + name: value for name, value in metrics.items()}
        for dashboard in self._dashboards:
            dashboard.scalars(iteration, named)


def _verdicts(results: Mapping[str, Mapping[str, float]], num_codes: int) -> dict[str, CodeVerdict]:
    """Of each validation set where there are codes: its figures are the same under each latent.

    Args:
        results: `DATA SET/LATENT` -> metrics.
    """
    of_sets = {name.rpartition("/")[0]: code_verdict(metrics, num_codes) for name, metrics in results.items()}
    return {name: verdict for name, verdict in of_sets.items() if verdict is not None}
