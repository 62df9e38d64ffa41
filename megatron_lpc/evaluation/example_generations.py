"""`eval_generations`: responses to prompts of the validation sets, as examples of the codes, at an evaluation.

The tokens are chosen by transformers' `generate`, of the exported checkpoint of that step, whatever the parallel
layout: rank 0 starts a process for it (`megatron_lpc.generation.examples`), and the other ranks wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_lpc.command_line import UserError
from megatron_lpc.config import ConfigError, with_padded_query_groups
from megatron_lpc.convert.companions import find_hf_files
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.settings import fit_family
from megatron_lpc.evaluation.during_training import Evaluation
from megatron_lpc.training.build import Run, ValidationSet
from megatron_lpc.training.first_rank import from_first_rank
from megatron_lpc.training.generated import Generated

FOLDER = "generations"
"""In the folder of a run: one file per evaluation, as `megatron_lpc.generation.examples` writes it."""
_GENERATOR = "megatron_lpc.generation.examples"
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class NoExamples(UserError):
    """The process that generates has failed; the message says why. The run can go on."""


def check_generations(run: Run) -> None:
    """Refuse at the start what an evaluation could not generate; nothing where `eval_generations` is 0.

    Raises:
        ConfigError: no family of Hugging Face has the model, or a validation set has no prompt that is short enough.
    """
    config = run.config
    if not config.logging.eval_generations:
        return
    start = config.checkpoint.pretrained_checkpoint
    if start is None or find_hf_files(Path(start)) is None:
        try:
            fit_family(with_padded_query_groups(config.model, 0))
        except ConversionError as error:
            raise ConfigError(f"--eval-generations: exports checkpoints, and {error}; drop the flag") from error
    for held_out in run.validation:
        _prompts(run, held_out)


def generate_examples(run: Run, evaluation: Evaluation, iteration: int) -> dict[str, list[Generated]]:
    """Responses by validation set, and a file of them in the folder `generations` of the run; the same on all ranks.

    Collectives: those of `Checkpoints.finish`; then the other ranks wait for rank 0 without one.

    Raises:
        NoExamples: on all ranks; the process fails, or there is no checkpoint of this step.
    """
    assert run.config.checkpoint.save is not None
    run.checkpoints.finish()
    root = Path(run.config.checkpoint.save)
    checkpoint = root / f"iter_{iteration:07d}"
    output = root / FOLDER / f"{checkpoint.name}.jsonl"

    def work() -> str:
        job = {
            "checkpoint": str(checkpoint),
            "prompts": {held_out.name: _prompts(run, held_out) for held_out in run.validation},
            "usage": evaluation.usage.tolist(),
            "max_tokens": run.config.logging.eval_generation_tokens,
            "on_gpu": run.platform.is_cuda,
            "trust_remote_code": run.config.data.trust_remote_code,
            "output": str(output),
        }
        failure = _run_generator(job) if checkpoint.is_dir() else f"{checkpoint} is no checkpoint of it"
        return json.dumps({"failure": failure, "lines": "" if failure else output.read_text(encoding="utf-8")})

    answer = json.loads(from_first_rank(work))
    if answer["failure"]:
        raise NoExamples(f"no responses were generated at step {iteration}: {answer['failure']}")
    generated: dict[str, list[Generated]] = {}
    # Not `splitlines`: a response may hold other ends of lines than the line feed, which JSON escapes.
    for line in map(json.loads, answer["lines"].rstrip("\n").split("\n")):
        generated.setdefault(line.pop("evaluation"), []).append(Generated(**line))
    return generated


def _prompts(run: Run, held_out: ValidationSet) -> list[list[int]]:
    """Token ids of the first different prompts of a set that leave room for a response."""
    logging, data = run.config.logging, held_out.loader.dataset
    longest = run.config.model.max_position_embeddings - logging.eval_generation_tokens
    found: dict[tuple[int, ...], None] = {}
    for example_index in (data.lengths[:, 0] <= longest).nonzero()[0].tolist():
        found[tuple(map(int, data[example_index].prompt))] = None
        if len(found) == logging.eval_generations:
            break
    if not found:
        raise ConfigError(
            f"--eval-generation-tokens {logging.eval_generation_tokens}: every prompt of --valid-data {held_out.name} "
            f"has more than the other {longest} of --max-position-embeddings; lower it"
        )
    return [list(prompt) for prompt in found]


def _run_generator(job: Mapping[str, Any]) -> str:
    """Do the job in a process of its own, on the cores of all ranks of this machine, which wait. The reason of a
    failure, or nothing.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
    threads = torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", _GENERATOR]
    done = subprocess.run(command, input=json.dumps(job), env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"the process was ended by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines() or [f"{_GENERATOR} ended with {done.returncode}"]
    return lines[-1].removeprefix("error: ") if done.returncode else ""
