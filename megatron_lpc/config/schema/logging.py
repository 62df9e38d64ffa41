"""Logging, evaluation during training, and aids for debugging."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.config.idle_rules import NO_GENERATIONS, NO_MEMORY_HISTORY, NO_PROFILE, NO_VALIDATION
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is logged, evaluated and profiled, and how often."""

    log_interval: int = option(1, range="[1, inf)", role=Role.RUN)
    """Steps between lines in the metrics file."""

    eval_interval: int = option(0, range="[0, inf)", role=Role.RUN, idle=NO_VALIDATION)
    """Steps between evaluations; 0 evaluates at the end only."""

    eval_iters: int | None = option(None, range="[1, inf)", role=Role.RUN, idle=NO_VALIDATION)
    """Global batches per evaluation; the whole validation set when unset."""

    eval_generations: int = option(0, range="[0, inf)", role=Role.RUN, idle=NO_VALIDATION)
    """Prompts of each validation set that are answered at an evaluation, under the prior and under each active code, as
    examples; from the checkpoint of that step."""

    eval_generation_tokens: int = option(64, range="[1, inf)", role=Role.RUN, idle=NO_GENERATIONS)
    """Tokens of the longest such response."""

    tensorboard: bool = option(True, role=Role.RUN)
    """Write TensorBoard events under `save`."""

    wandb_project: str | None = option(None, role=Role.RUN)
    """Also log to this Weights & Biases project (needs the package `wandb`)."""

    peak_tflops: float | None = option(None, range="(0, inf)", role=Role.RUN)
    """Peak TFLOP/s of one device for `mfu`; when unset, known for common GPUs and measured on CPU."""

    log_straggler_interval: int = option(0, range="[0, inf)", role=Role.RUN)
    """Steps between comparisons of the ranks: which computes slowest, and the memory of each, in a line and in
    `ranks.jsonl` under `save`; 0 is never."""

    rank_log_dir: str | None = option(None, role=Role.RUN, evaluation=True)
    """Folder to which each rank also writes what it prints, in a file of its own."""

    profile: bool = option(False, role=Role.RUN)
    """Profile some steps with torch.profiler and write Chrome traces under `save`."""

    profile_step_start: int = option(10, range="[0, inf)", role=Role.RUN, idle=NO_PROFILE)
    """First step to profile, counted from 0."""

    profile_step_end: int = option(12, range="[1, inf)", role=Role.RUN, idle=NO_PROFILE)
    """Step before which profiling ends."""

    profile_ranks: list[int] = option([0], range="[0, inf)", role=Role.RUN, idle=NO_PROFILE)
    """Global ranks to profile."""

    record_memory_history: bool = option(False, role=Role.RUN)
    """Record the CUDA allocator's history on the last rank, as Megatron-LM does, and write a snapshot (GPU only)."""

    memory_snapshot_path: str = option("snapshot.pickle", role=Role.RUN, idle=NO_MEMORY_HISTORY)
    """File of the memory snapshot; view it at https://docs.pytorch.org/memory_viz."""
