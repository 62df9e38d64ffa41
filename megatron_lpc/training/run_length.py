"""The number of steps, and what is said of it at the start of a run."""

from __future__ import annotations

import math

from megatron_lpc.command_line import warn
from megatron_lpc.config import Config
from megatron_lpc.config.schema import TrainingConfig


def total_steps(config: Config, pairs: int | None) -> int:
    """Optimizer steps of the whole run on a data set of `pairs` pairs; None for a stream, whose steps are set."""
    training = config.training
    if training.train_iters is not None:
        return training.train_iters
    assert pairs is not None
    return max(1, math.ceil(training.num_train_epochs * pairs / training.global_batch_size))


def length_notes(training: TrainingConfig, pairs: int, train_iters: int) -> list[str]:
    """Sentences about a run of `train_iters` steps on `pairs` pairs that is longer than its epochs say.

    Warns where one step sees pairs more than once.
    """
    batch = training.global_batch_size
    if pairs < batch:
        warn(
            f"{pairs} pairs under a global batch of {batch}: each step sees {batch / pairs:.3g} epochs; "
            "lower --global-batch-size, or give more pairs"
        )
    epochs = training.num_train_epochs
    if training.train_iters is not None or math.isclose(epochs * pairs, train_iters * batch):
        return []
    return [
        f"--num-train-epochs {epochs:g} of {pairs} pairs is {epochs * pairs / batch:.2f} steps of {batch}: "
        f"the run has {train_iters}, which see {train_iters * batch - epochs * pairs:.0f} pairs more."
    ]
