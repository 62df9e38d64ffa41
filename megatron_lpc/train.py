"""Train: `torchrun … -m megatron_lpc.train --config FILE.yaml [--flag value …]`.

Reads from top to bottom as a run goes: build, loop, save.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_lpc.config import Config, parse_args
from megatron_lpc.evaluation.during_training import Evaluation, evaluate_run
from megatron_lpc.evaluation.example_generations import NoExamples, check_generations, generate_examples
from megatron_lpc.evaluation.scoring import evaluation_sources
from megatron_lpc.training.bad_steps import stop_if_diverged
from megatron_lpc.training.build import Run, assemble_run
from megatron_lpc.training.exit import Due, ExitRequest, hold_requests_to_save
from megatron_lpc.training.failure import reports_failures
from megatron_lpc.training.first_rank import from_first_rank
from megatron_lpc.training.metrics_file import METRICS_FILE, evaluations_after
from megatron_lpc.training.phases import doing, now_doing, steps_done
from megatron_lpc.training.preflight import preflight
from megatron_lpc.training.profiling import Profiler, memory_history
from megatron_lpc.training.run_folder import only_run_in
from megatron_lpc.training.setup import start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep
from megatron_lpc.training.stragglers import Stragglers
from megatron_lpc.training.watch import Observer, watch_run

Evaluations = dict[str, dict[str, float]]


def train(config: Config) -> Evaluations:
    """Run a whole training, or what is left of it.

    Returns:
        The last evaluation of each validation set under each latent, by `DATA SET/LATENT`; empty when the run was asked
        to stop before its end.

    Raises:
        ConfigError: the options cannot work.
        TooManyBadSteps: the training diverged; the ids of the batch are saved.
    """
    began = time.monotonic()
    context = start_distributed(config)
    with only_run_in(context.config.checkpoint.save):
        run = assemble_run(context)
        check_generations(run)
        results = kept_results(run)
        if results is None:
            results = train_on(run, began)
    stop_distributed()
    return results


def train_on(run: Run, began: float) -> Evaluations:
    """From the step at which the run stands to its end; arguments and result as for `train`."""
    exit_request = ExitRequest(run.config, began, run.train_iters)
    profiler = Profiler(run.config, run.start.iteration, run.train_iters)
    train_step = TrainStep(run.context, run.policy, run.reference)
    stragglers = Stragglers(run.context)
    options, state = run.config, run.start
    with watch_run(run) as watch, memory_history(run.config, run.platform), profiler, exit_request:
        for batches in run.batches():
            stragglers.begin_step()
            result = train_step(batches, state.iteration)
            now_doing("between steps")
            profiler.step()
            state = state.after_step(options.training.global_batch_size, result.updated)
            steps_done(state.iteration)
            watch.step(state.iteration, result.metrics)
            if compared := stragglers.end_step(state.iteration):
                watch.message(compared)
            stop_if_diverged(run, state)

            is_last = state.iteration == run.train_iters
            due = exit_request.due(state.iteration, run.context.groups)
            if due != Due.NOTHING:
                # Before all else, for whoever sent a signal does not wait for long.
                run.save_checkpoint(state)
                if due == Due.EXIT:
                    run.checkpoints.finish()
                watch.message(asked_message(due, options, state.iteration, run.train_iters))
            evaluation = None
            if is_due(state.iteration, options.logging.eval_interval) and not is_last:
                evaluation = evaluate(run, watch, state.iteration)
            if is_last or is_due(state.iteration, options.checkpoint.save_interval):
                run.save_checkpoint(state)
            run.checkpoints.poll()
            if due == Due.EXIT:
                return {}
            if evaluation is not None:
                show_examples(run, watch, state.iteration, evaluation)
        run.checkpoints.finish()
        evaluation = evaluate(run, watch, state.iteration)
        show_examples(run, watch, state.iteration, evaluation)
    return evaluation.metrics


def kept_results(run: Run) -> Evaluations | None:
    """The last evaluation of a run that was complete before it was started again; None where something is to do.

    Collectives: none; the other ranks wait for rank 0.
    """
    save = run.config.checkpoint.save
    if save is None or run.start.iteration != run.train_iters or not run.checkpoints.has_saved(run.start.iteration):
        return None
    metrics = Path(save) / METRICS_FILE
    kept = json.loads(from_first_rank(lambda: json.dumps(evaluations_after(metrics, run.train_iters))))
    if len(kept) != len(run.validation) * len(evaluation_sources(run.config.latent)):
        return None
    if dist.get_rank() == 0:
        print(f"The run in {save} is complete: it has done and evaluated all {run.train_iters} steps. Nothing changes.")
    results: Evaluations = kept
    return results


def evaluate(run: Run, watch: Observer, iteration: int) -> Evaluation:
    """Evaluate the validation sets, and show what is found. Collectives: those of `evaluate_run`."""
    evaluation = evaluate_run(run)
    watch.evaluations(iteration, evaluation.metrics)
    watch.histograms(iteration, evaluation.histograms)
    return evaluation


@doing("evaluation")
def show_examples(run: Run, watch: Observer, iteration: int, evaluation: Evaluation) -> None:
    """Generate responses and show them, where `eval_generations` asks for it; a run goes on without them.

    Collectives: those of `generate_examples`.
    """
    if not run.config.logging.eval_generations:
        return
    try:
        for name, generated in generate_examples(run, evaluation, iteration).items():
            watch.generations(iteration, name, generated)
    except NoExamples as error:
        watch.message(f"warning: {error}")


def asked_message(due: Due, config: Config, iteration: int, train_iters: int) -> str:
    """What an early exit leaves behind: torchrun reports a SIGTERM as a failure of the run, whatever it has saved; or
    what a SIGUSR1 has done."""
    if due == Due.EXIT:
        saved = "its checkpoint is complete" if config.checkpoint.save else "nothing is saved, for --save is unset"
        return f"The run exits early, after step {iteration}/{train_iters}; {saved}."
    saved = "saves a checkpoint" if config.checkpoint.save else "saves nothing, for --save is unset"
    return f"The run {saved} after step {iteration}/{train_iters}, as SIGUSR1 asks, and goes on."


def is_due(iteration: int, interval: int) -> bool:
    """Whether something happens after this many steps that happens every `interval` steps; 0 is never."""
    return interval > 0 and iteration % interval == 0


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when the options or the data cannot work, with 1 when the training diverged or the
    preflight failed.

    One rank says why.
    """
    hold_requests_to_save()
    with reports_failures():
        config = parse_args(sys.argv[1:] if argv is None else argv)
        if config.training.preflight:
            preflight(config)
        else:
            train(config)


if __name__ == "__main__":
    main()
