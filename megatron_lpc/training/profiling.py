"""Where the time of some steps goes (`--profile`), and where GPU memory goes (`--record-memory-history`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerAction, profile

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.files import whole_file
from megatron_lpc.platform import Platform

_ALLOCATOR_EVENTS = 100_000
"""How many allocations and releases a snapshot holds, as in Megatron-LM."""


class Profiler:
    """Steps `profile_step_start` to `profile_step_end` (counted from 0, the end excluded) under torch.profiler.

    Each of `profile_ranks` leaves a Chrome trace with shapes and memory, `SAVE/profile/rank_00000_steps_10_to_12.json`;
    open it in https://ui.perfetto.dev. On the other ranks nothing happens. A context manager.

    Args:
        config: the options.
        start_iter: steps done before this process.
        train_iters: steps of the whole run.

    Raises:
        ConfigError: none of the steps is left to do in this run.
    """

    def __init__(self, config: Config, start_iter: int, train_iters: int) -> None:
        options = config.logging
        self._profile: profile | None = None
        if not options.profile:
            return
        first, end = max(options.profile_step_start, start_iter), min(options.profile_step_end, train_iters)
        if first >= end:
            raise ConfigError(
                f"--profile-step-start {options.profile_step_start}, --profile-step-end {options.profile_step_end}: "
                f"this run makes steps {start_iter} to {train_iters - 1}; choose some of them"
            )
        rank = dist.get_rank()
        if rank not in options.profile_ranks:
            return
        assert config.checkpoint.save is not None
        trace = Path(config.checkpoint.save) / "profile" / f"rank_{rank:05d}_steps_{first}_to_{end}.json"
        self._profile = profile(
            schedule=lambda step: _action(start_iter + step, first, end),
            on_trace_ready=lambda done: _write_trace(done, trace),
            record_shapes=True,
            profile_memory=True,
        )

    def __enter__(self) -> Profiler:
        if self._profile:
            self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._profile:
            self._profile.__exit__(*error)

    def step(self) -> None:
        """A step of the run is done."""
        if self._profile:
            self._profile.step()


def _action(iteration: int, first: int, end: int) -> ProfilerAction:
    if iteration == first - 1:
        return ProfilerAction.WARMUP  # The profiler's own start is slow, and belongs to no profiled step.
    if not first <= iteration < end:
        return ProfilerAction.NONE
    return ProfilerAction.RECORD_AND_SAVE if iteration == end - 1 else ProfilerAction.RECORD


def _write_trace(done: profile, path: Path) -> None:
    with whole_file(path) as temporary:
        done.export_chrome_trace(str(temporary))


@contextmanager
def memory_history(config: Config, platform: Platform) -> Iterator[None]:
    """Record what the CUDA allocator does, on the last rank, with `record_memory_history`; as Megatron-LM does.

    The snapshot is written to `memory_snapshot_path` when the block ends, also by an error: running out of memory is
    what it is for. On a CPU the option is refused (`validate`): there `--profile` shows memory in its trace.
    """
    is_recorded = config.logging.record_memory_history and dist.get_rank() == dist.get_world_size() - 1
    if not is_recorded:
        yield
        return
    assert platform.is_cuda
    torch.cuda.memory._record_memory_history(max_entries=_ALLOCATOR_EVENTS)
    try:
        yield
    finally:
        with whole_file(config.logging.memory_snapshot_path) as temporary:
            torch.cuda.memory._dump_snapshot(str(temporary))
        torch.cuda.memory._record_memory_history(enabled=None)
