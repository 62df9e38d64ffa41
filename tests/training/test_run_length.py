"""Steps of a run, and what is said where they and the epochs do not agree."""

from __future__ import annotations

import pytest

from megatron_lpc.config import Config, TrainingConfig
from megatron_lpc.training.run_length import length_notes, total_steps


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 5), (0.01, 1)])
def test_steps_of_a_run(epochs: float, steps: int) -> None:
    assert total_steps(Config(training=TrainingConfig(num_train_epochs=epochs, global_batch_size=8)), 20) == steps
    assert total_steps(Config(training=TrainingConfig(train_iters=7)), None) == 7


@pytest.mark.parametrize(
    ("training", "pairs", "note"),
    [
        (TrainingConfig(global_batch_size=8), 16, None),
        (TrainingConfig(global_batch_size=8, num_train_epochs=0.3), 80, None),
        (TrainingConfig(global_batch_size=8, train_iters=7), 20, None),
        (
            TrainingConfig(num_train_epochs=2),
            1620,
            "--num-train-epochs 2 of 1620 pairs is 101.25 steps of 32: the run has 102, which see 24 pairs more.",
        ),
    ],
)
def test_epochs_that_do_not_divide_into_steps(
    training: TrainingConfig, pairs: int, note: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = total_steps(Config(training=training), pairs)
    assert length_notes(training, pairs, steps) == ([] if note is None else [note])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("train_iters", [None, 5])
def test_fewer_pairs_than_a_global_batch(train_iters: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    training = TrainingConfig(global_batch_size=32, train_iters=train_iters)
    length_notes(training, 10, 1)
    assert "warning: 10 pairs under a global batch of 32: each step sees 3.2 epochs" in capsys.readouterr().err
