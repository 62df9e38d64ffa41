"""What a run that resumes must share with the one that saved the checkpoint, besides the options of its model.

Checked before a model is built and before anything is written, so a refused run leaves its folder as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_lpc.command_line import flag_of
from megatron_lpc.config import Config, ConfigError, shown
from megatron_lpc.losses import uses_reference
from megatron_lpc.training.checkpoint_folder import read_run_description
from megatron_lpc.training.state import RunState

_FIXED: dict[str, tuple[str, tuple[str, ...]]] = {
    "batch": ("training", ("global_batch_size",)),
    "loss": (
        "loss",
        ("loss_type", "beta", "label_smoothing", "robust", "rpo_alpha", "simpo_gamma", "ipo_length_average"),
    ),
}
"""What `override_resume` names -> section and options of it."""


def check_resumed(folder: Path, config: Config, start: RunState) -> list[str]:
    """Refuse to continue the run of a checkpoint as if it were another run.

    Args:
        folder: of one checkpoint, as `resolve_checkpoint` gives it.
        start: what this run would be at step 0.

    Returns:
        Sentences about what changes and is allowed to.

    Raises:
        ConfigError: one line per reason. The run has fewer steps than are done, other data, another seed or another
            reference; the options that say it is meant are not set.
    """
    description = read_run_description(folder)
    saved, options = RunState(**description["run"]), description["options"]
    problems = [
        *_steps(config, saved, start),
        *_data(config, saved, start, options["data"]),
        *_seed(config, options["training"]["seed"]),
        *_named(config, options, "batch"),
        *_named(config, options, "loss"),
        *_frozen_backbone(config, options["training"].get("freeze_backbone", False)),
        *_reference(config, options),
    ]
    if problems:
        raise ConfigError("\n".join(f"{problem} ({folder})" for problem in problems))
    notes = []
    if saved.train_iters != start.train_iters:
        notes.append(
            f"The run was of {saved.train_iters} steps and is now of {start.train_iters}: "
            "all schedules follow the new number."
        )
    if saved.positions and not _has_same_data(saved, start):
        notes.append("The stream is of other data than the checkpoint's and begins at its start.")
    return notes


def resumed_state(saved: RunState, start: RunState) -> RunState:
    """The state from which a run goes on; a place in a stream of other data means nothing in this one.

    Args:
        saved: that of the checkpoint.
        start: what this run would be at step 0.
    """
    positions = saved.positions if _has_same_data(saved, start) else []
    return replace(saved, train_iters=start.train_iters, data=start.data, positions=positions)


def _has_same_data(saved: RunState, start: RunState) -> bool:
    return saved.data in (None, start.data)


def _steps(config: Config, saved: RunState, start: RunState) -> Iterator[str]:
    if start.train_iters >= saved.iteration:
        return
    training = config.training
    if training.train_iters is None:
        length = f"--num-train-epochs {training.num_train_epochs:g}: is {start.train_iters} steps"
    else:
        length = f"--train-iters {training.train_iters}: is fewer steps"
    yield f"{length}, and the checkpoint has done {saved.iteration}; raise it, or load an earlier checkpoint"


def _data(config: Config, saved: RunState, start: RunState, options: dict[str, Any]) -> Iterator[str]:
    if config.data.streaming and not saved.positions and saved.consumed_samples:
        yield "--streaming: the checkpoint is of a run that did not stream its data; resume without it"
        return
    block = options["shuffle_buffer_size"]
    if saved.positions and _has_same_data(saved, start) and config.data.shuffle_buffer_size != block:
        yield (
            f"--shuffle-buffer-size {config.data.shuffle_buffer_size}: the checkpoint's run has {block}, on which the "
            "order of streamed data depends; set it to that"
        )
    if "data" in config.checkpoint.override_resume or _has_same_data(saved, start):
        return
    now = vars(config.data)
    differing = [name for name, value in options.items() if name in now and now[name] != value]
    changes = [f"{flag_of(name)} {shown(options[name])}, now {shown(now[name])}" for name in differing]
    yield (
        f"--train-data: the checkpoint's run read other data "
        f"({'; '.join(changes) or 'the files, the tokenizer or the program have changed'}); "
        "resume with those, or set --override-resume data"
    )


def _seed(config: Config, saved: int) -> Iterator[str]:
    seed = config.training.seed
    if seed != saved and not _may_have_other_seed(config):
        yield (
            f"--seed {seed}: the checkpoint's run has {saved}, on which its data order and latent noise depend; "
            f"set --seed {saved}, or --override-resume seed"
        )


def _may_have_other_seed(config: Config) -> bool:
    return "seed" in config.checkpoint.override_resume or not config.checkpoint.load_rng


def _named(config: Config, options: dict[str, Any], kind: str) -> Iterator[str]:
    """The options of `_FIXED[kind]`, which a run keeps from its first step to its last."""
    if kind in config.checkpoint.override_resume:
        return
    section, names = _FIXED[kind]
    now, before = vars(getattr(config, section)), options[section]
    changes = [
        f"{flag_of(name)} {shown(before[name])}, now {shown(now[name])}"
        for name in names
        if name in before and before[name] != now[name]
    ]
    if changes:
        yield (
            f"{'; '.join(changes)}: the checkpoint's run has another {kind}; resume with that, or set "
            f"--override-resume {kind}"
        )


def _frozen_backbone(config: Config, saved: bool) -> Iterator[str]:
    """The optimizer has state of what trains, and of nothing else."""
    if config.training.freeze_backbone != saved:
        flag, does = ("--no-freeze-backbone", "does not train") if saved else ("--freeze-backbone", "trains")
        yield (
            f"{flag}: the checkpoint's run {does} its backbone; resume it so, or start a run from its weights with "
            "--pretrained-checkpoint"
        )


def _reference(config: Config, options: dict[str, Any]) -> Iterator[str]:
    """A reference whose weights are not given follows from the seed."""
    if not uses_reference(config.loss) or config.training.freeze_backbone:
        return
    now = config.loss.reference_load or config.checkpoint.pretrained_checkpoint
    before = options["loss"]["reference_load"] or options["checkpoint"]["pretrained_checkpoint"]
    if now is None and before is not None:
        yield f"--reference-load: is unset, and the reference of the checkpoint's run is {before}; set it to that"
    elif now is None and config.training.seed != options["training"]["seed"] and _may_have_other_seed(config):
        flag = "--override-resume seed" if config.checkpoint.load_rng else "--no-load-rng"
        yield f"{flag}: the reference has fresh weights, which follow from --seed; set that to the checkpoint's"
