"""TensorBoard and Weights & Biases: numbers, histograms and texts of a run, while it goes on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.training.generated import Generated
from megatron_lpc.training.histogram import Histogram


class Dashboard(Protocol):
    """What can be shown. Names have their parts between slashes; iterations are steps done."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def histograms(self, iteration: int, histograms: Mapping[str, Histogram]) -> None: ...

    def generations(self, iteration: int, name: str, generated: Sequence[Generated]) -> None: ...


class TensorBoard:
    """Events for TensorBoard."""

    def __init__(self, writer: Any) -> None:
        """
        Args:
            writer: a `SummaryWriter`.
        """
        self._writer = writer

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def histograms(self, iteration: int, histograms: Mapping[str, Histogram]) -> None:
        for name, histogram in histograms.items():
            edges, counts = histogram.edges, histogram.counts
            middles = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=counts.sum(),
                sum=counts @ middles,
                sum_squares=counts @ np.square(middles),
                # A bucket ends at its limit; the one below the least edge is empty.
                bucket_limits=edges.tolist(),
                bucket_counts=[0.0, *counts.tolist()],
                global_step=iteration,
            )

    def generations(self, iteration: int, name: str, generated: Sequence[Generated]) -> None:
        """One text per prompt: the responses under all latents."""
        prompts = list(dict.fromkeys(each.prompt for each in generated))
        for number, prompt in enumerate(prompts, start=1):
            parts = ["**prompt**", _verbatim(prompt)]
            for each in generated:
                if each.prompt == prompt:
                    parts += [f"**{each.latent}** ({each.num_tokens} tokens{', cut' * each.is_cut})"]
                    parts += [_verbatim(each.response)]
            self._writer.add_text(f"{name}/{number}", "\n\n".join(parts), iteration)


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, module: Any, run: Any) -> None:
        """
        Args:
            module: `wandb`.
            run: what its `init` gave.
        """
        self._module = module
        self._run = run

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=iteration)

    def histograms(self, iteration: int, histograms: Mapping[str, Histogram]) -> None:
        shown = {
            name: self._module.Histogram(np_histogram=(histogram.counts, histogram.edges))
            for name, histogram in histograms.items()
        }
        self._run.log(shown, step=iteration)

    def generations(self, iteration: int, name: str, generated: Sequence[Generated]) -> None:
        """One table per evaluation."""
        rows = [[iteration, *asdict(each).values()] for each in generated]
        columns = ["iteration", *asdict(generated[0])]
        self._run.log({name: self._module.Table(columns=columns, data=rows)}, step=iteration)


def _verbatim(text: str) -> str:
    """Markdown of a text whose own marks are not read as such."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


@contextmanager
def open_tensorboard(save: Path, start_iter: int) -> Iterator[TensorBoard]:
    """Events in the folder `tensorboard`; what a resumed run does again is hidden.

    Args:
        save: the folder of the run.
        start_iter: steps done before this process.
    """
    # Imported late: it takes seconds, and most ranks never need it.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(save / "tensorboard"), purge_step=start_iter + 1 if start_iter else None) as writer:
        yield TensorBoard(writer)


@contextmanager
def open_wandb(config: Config) -> Iterator[WeightsAndBiases]:
    """A run of its own in `wandb_project`.

    Raises:
        ConfigError: the package is not installed.
    """
    project, save = config.logging.wandb_project, config.checkpoint.save
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError:
        raise ConfigError(
            f"--wandb-project {project}: the package `wandb` is not installed; `pip install '.[wandb]'`, or unset it"
        ) from None
    # A resumed process is a run of its own; the group holds those of one folder together.
    group = Path(save).name if save else None
    with wandb.init(project=project, config=asdict(config), dir=save, group=group) as run:
        yield WeightsAndBiases(wandb, run)
