"""Train: `torchrun … -m megatron_lpc.train --config FILE.yaml [--flag value …]`.

Reads from top to bottom as a run goes: build, resume, loop, save.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_lpc.command_line import UserError, reports_errors
from megatron_lpc.config import Config, parse_args, print_config, save_resolved
from megatron_lpc.data.sampler import TrainingOrder
from megatron_lpc.evaluation.scoring import evaluate_pairs
from megatron_lpc.model import wrap_data_parallel
from megatron_lpc.training.checkpoint import Checkpoints, RunState
from megatron_lpc.training.optimizer import build_optimizer, build_scheduler
from megatron_lpc.training.run import (
    make_loader,
    make_references,
    make_stream,
    open_data,
    open_tokenizer,
    start_model,
    starting_point,
    stream_positions,
    total_steps,
    training_steps,
)
from megatron_lpc.training.setup import start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep
from megatron_lpc.training.watch import Watch


class TooManyBadSteps(UserError):
    """The loss or a gradient was not finite for more than `max_bad_steps` steps in a row."""

    exit_code = 1


def train(config: Config) -> dict[str, dict[str, float]]:
    """Run a whole training, or what is left of it.

    Returns:
        The last evaluation of each validation set under each latent, by name.

    Raises:
        ConfigError: the options cannot work.
        TooManyBadSteps: the training diverged; the ids of the batch are saved.
    """
    platform = start_distributed(config)
    tokenizer = open_tokenizer(config)
    data = None if config.data.streaming else open_data(config, tokenizer, config.data.train_data, "train")
    validation = {name: open_data(config, tokenizer, [source], name) for name, source in config.data.valid_data.items()}
    steps = total_steps(config, None if data is None else len(data))

    policy = start_model(config, platform)
    reference, *judges = make_references(config, platform, policy, [("train", data), *validation.items()])
    chunks = wrap_data_parallel(config, policy)
    optimizer = build_optimizer(config, chunks)
    scheduler = build_scheduler(config, optimizer, steps)
    checkpoints = Checkpoints(config, platform, chunks, optimizer, scheduler)
    start = starting_point(config)
    state = (
        checkpoints.load(start) if start else RunState(iteration=0, consumed_samples=0, bad_steps=0, train_iters=steps)
    )

    step = TrainStep(config, platform, chunks, optimizer, scheduler, reference, steps)
    loader = make_stream(config, tokenizer, state) if data is None else make_loader(config, tokenizer, data)
    stream = training_steps(config, loader, state.consumed_samples)
    stop = _StopSignal()
    results: dict[str, dict[str, float]] = {}

    with Watch(config, steps, state.iteration) if dist.get_rank() == 0 else nullcontext() as watch:
        if watch:
            print_config(config)
            if config.checkpoint.save:
                save_resolved(config, Path(config.checkpoint.save) / "config.yaml")
            if state.train_iters != steps:
                watch.message(
                    f"The run was of {state.train_iters} steps and is now of {steps}: all schedules follow the new number."
                )

        def evaluate() -> None:
            for (name, dataset), judge in zip(validation.items(), judges, strict=True):
                batches = make_loader(config, tokenizer, dataset).evaluation(max_steps=config.logging.eval_iters)
                for source, metrics in evaluate_pairs(config, list(chunks), batches, judge, platform.device).items():
                    results[f"{name}/{source}"] = metrics
                    if watch:
                        watch.evaluation(state.iteration, f"{name}/{source}", metrics)

        for batches in islice(stream, steps - state.iteration):
            result = step(batches, state.iteration)
            state = RunState(
                iteration=state.iteration + 1,
                consumed_samples=state.consumed_samples + config.training.global_batch_size,
                bad_steps=0 if result.updated else state.bad_steps + 1,
                train_iters=steps,
            )
            if watch:
                watch.step(state.iteration, result.metrics)
            if state.bad_steps > config.training.max_bad_steps:
                raise TooManyBadSteps(_report_bad_batch(config, state, None if data is None else len(data)))

            last, stopped = state.iteration == steps, stop.anywhere(platform.device)
            if _due(state.iteration, config.logging.eval_interval) and not last:
                evaluate()
            if config.checkpoint.save and (last or stopped or _due(state.iteration, config.checkpoint.save_interval)):
                checkpoints.save(replace(state, positions=stream_positions(loader, state.consumed_samples)))
            checkpoints.poll()
            if stopped:
                break
        else:
            evaluate()
        checkpoints.finish()
    stop_distributed()
    return results


class _StopSignal:
    """SIGTERM asks for a checkpoint and a clean end; a scheduler sends it before it takes the machine away."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def anywhere(self, device: torch.device) -> bool:
        """Whether any rank was asked; one all-reduce over the world, so that all stop after the same step."""
        asked = torch.tensor([int(self._asked)], device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())


def _due(iteration: int, interval: int) -> bool:
    return interval > 0 and iteration % interval == 0


def _report_bad_batch(config: Config, state: RunState, rows: int | None) -> str:
    """Save which pairs the last step read (rank 0), and say so. `rows` of the training data; None for a stream, where a pair has no row."""
    message = f"the loss or a gradient was not finite for {state.bad_steps} steps in a row, the last is step {state.iteration}"
    samples = range(state.consumed_samples - config.training.global_batch_size, state.consumed_samples)
    read: dict[str, list[int]] = {"samples": list(samples)}
    if rows is not None:
        order = TrainingOrder(rows, config.training.seed)
        read["rows"] = [order.example_index(sample) for sample in samples]
    if not config.checkpoint.save:
        return f"{message}; of the training data it read {read}"
    path = Path(config.checkpoint.save) / f"bad_batch_{state.iteration}.json"
    if dist.get_rank() == 0:
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(read), encoding="utf-8")
        partial.replace(path)
    return f"{message}; the pairs it read are in {path}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work, with 1 when the training diverged; rank 0 says why."""
    with reports_errors():
        train(parse_args(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
