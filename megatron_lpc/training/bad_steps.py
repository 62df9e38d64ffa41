"""The end of a run whose loss or gradients stay non-finite."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from megatron_lpc.command_line import UserError
from megatron_lpc.data.loader import PairLoader
from megatron_lpc.files import write_json
from megatron_lpc.training.build import Run
from megatron_lpc.training.state import RunState


class TooManyBadSteps(UserError):
    """The loss or a gradient was not finite for more than `max_bad_steps` consecutive steps."""

    exit_code = 1


def stop_if_diverged(run: Run, state: RunState) -> None:
    """Call it after every step.

    Raises:
        TooManyBadSteps: the training diverged. Rank 0 has written which pairs the last step read to
            `bad_batch_STEP.json` under `save`; the message names the file, or the pairs where `save` is unset.
    """
    if state.bad_steps <= run.config.training.max_bad_steps:
        return
    message = (
        f"the loss or a gradient was not finite for {state.bad_steps} steps in a row, "
        f"the last is step {state.iteration}"
    )
    pairs = _pairs_of_last_step(run, state)
    save = run.config.checkpoint.save
    if not save:
        raise TooManyBadSteps(f"{message}; of the training data it read {pairs}")
    path = Path(save) / f"bad_batch_{state.iteration}.json"
    if dist.get_rank() == 0:
        write_json(path, pairs)
    raise TooManyBadSteps(f"{message}; the pairs it read are in {path}")


def _pairs_of_last_step(run: Run, state: RunState) -> dict[str, list[int]]:
    """Sample ids of the global batch; for data on disk also example indices, which a stream does not have."""
    training = run.config.training
    samples = range(state.consumed_samples - training.global_batch_size, state.consumed_samples)
    pairs = {"samples": list(samples)}
    if isinstance(run.train_loader, PairLoader):
        order = run.train_loader.order(training.seed)
        pairs["example_index"] = order.example_indices(samples).tolist()
    return pairs
