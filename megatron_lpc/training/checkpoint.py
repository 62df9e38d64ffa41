"""Checkpoints of a run: weights, optimizer, schedules, random generators and progress.

Tensors go through megatron-core's distributed checkpointing. A checkpoint loads into any parallel layout, with or
without the distributed optimizer. In the parallel layout that wrote it, the run goes on as if it had not stopped, to
the last bit on a CPU, and on CUDA under `deterministic`; in another one the generators of dropout are seeded again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

from megatron_lpc.platform.patches.checkpoint_results_queue import answer_through_results_file
from megatron_lpc.training.checkpoint_content import await_weights, parallel_layout, run_description, run_tensors
from megatron_lpc.training.checkpoint_failure import check_free_space, checkpoint_bytes, explains_failure
from megatron_lpc.training.checkpoint_folder import (
    open_partial,
    partial_folder,
    publish,
    read_run_description,
    resolve_checkpoint,
    write_description,
)
from megatron_lpc.training.checkpoint_integrity import checksums, write_manifest
from megatron_lpc.training.checkpoint_tensors import compare_options, copy_weights, read_tensors, sharded_weights
from megatron_lpc.training.checkpoint_writer import OneTensorAtATime
from megatron_lpc.training.collectives import largest_on_any_rank
from megatron_lpc.training.exit import SaveWatch
from megatron_lpc.training.optimizer_state import optimizer_updates, restore_optimizer_state
from megatron_lpc.training.pending_saves import PendingSaves
from megatron_lpc.training.phases import doing
from megatron_lpc.training.policy import TrainablePolicy
from megatron_lpc.training.random_state import random_state_file, restore_random_state, save_random_state
from megatron_lpc.training.setup import RunContext, seed_everything
from megatron_lpc.training.state import RunState


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks."""

    def __init__(self, context: RunContext, policy: TrainablePolicy) -> None:
        self._context = context
        self._policy = policy
        save = context.config.checkpoint.save
        self._root = Path(save) if save else None
        if self._root is not None and dist.get_rank() == 0:
            self._root.mkdir(parents=True, exist_ok=True)
        self._saved_iteration: int | None = None
        self._saving = 0
        """Step of the latest save, which may be in flight."""
        self._pending = PendingSaves(context.groups)
        self._watch = SaveWatch()
        answer_through_results_file()
        # Each tensor is written by one of the ranks that hold it.
        self._writer = OneTensorAtATime(computes_checksums=context.config.checkpoint.verify_integrity)
        self._strategy = FullyParallelSaveStrategyWrapper(self._writer, context.groups.dp_cp)

    def save(self, state: RunState) -> None:
        """Write a checkpoint into `save`; nothing where that is unset, or where this very step is saved already.

        An asynchronous save returns when tensors have been copied, and appears at a later `poll` or `finish`. Ranks
        share the folder.

        Memory: a synchronous save holds one tensor at a time on the host. An asynchronous one holds a copy of all that
        this rank writes.

        Collectives: two barriers over the world; those of megatron-core's `dist_checkpointing.save`, `await_weights`,
        `_write_manifest`, `checkpoint_bytes` and `largest_on_any_rank`. None of them carries optimizer state.

        Raises:
            WriteFailed: on the ranks that notice it; there is no room, or a file cannot be written. Older checkpoints
                are whole.
        """
        if self._root is None or state.iteration == self._saved_iteration:
            return
        began, root = time.monotonic(), self._root
        self.finish()
        self._saving = state.iteration
        with explains_failure(root, state.iteration):
            request = self._begin(root, state)

            def complete() -> None:
                self._complete(root, state.iteration)
                self._watch.saved(time.monotonic() - began)

            if request is None:
                complete()
            else:
                request.add_finalize_fn(complete)
                self._pending.begin(request)
        self._saved_iteration = state.iteration

    def _begin(self, root: Path, state: RunState) -> AsyncRequest | None:
        """Write all but what tells that it is complete; an asynchronous save gives a request to write the tensors."""
        await_weights(self._context, self._policy)
        tensors = run_tensors(self._policy)
        needed = checkpoint_bytes(tensors, self._context.groups)
        is_first = dist.get_rank() == 0
        if is_first:
            open_partial(root, state.iteration)
            check_free_space(root, needed)
        dist.barrier()
        partial = partial_folder(root, state.iteration)
        request = dist_checkpointing.save(
            tensors,
            str(partial),
            self._strategy,
            async_sharded_save=self._context.config.checkpoint.async_save,
        )
        save_random_state(partial, self._context.platform)
        updates = largest_on_any_rank(optimizer_updates(self._policy.optimizer), self._context.groups)
        if is_first:
            write_description(partial, run_description(self._context, self._policy, state, updates))
        dist.barrier()
        return request

    def _complete(self, root: Path, iteration: int) -> None:
        """Give a checkpoint whose files are all written its checksums and its name."""
        self._write_manifest(partial_folder(root, iteration))
        if dist.get_rank() == 0:
            publish(root, iteration, self._context.config.checkpoint.keep_last)

    def poll(self) -> None:
        """Complete an asynchronous save that has been written; call it every step.

        Collectives: one all-reduce over the world, between hosts, while a save is pending.

        Raises:
            WriteFailed: it could not be written, or a process that writes it has died.
        """
        self._finalize(blocking=False)

    def finish(self) -> None:
        """Wait until all saves are complete, on all ranks.

        Collectives: as `poll`, and a barrier over the world. Without it a rank could end while rank 0 still publishes
        the checkpoint, and launchers kill the others when the first one ends.

        Raises:
            WriteFailed: as `poll`.
        """
        with doing("save"):
            self._finalize(blocking=True)
            dist.barrier()

    def _finalize(self, blocking: bool) -> None:
        if self._root is None:
            return
        with explains_failure(self._root, self._saving):
            self._pending.finalize(blocking)

    def has_saved(self, iteration: int) -> bool:
        """Whether `save` holds the checkpoint after so many steps, which this process wrote or resumed from."""
        return self._saved_iteration == iteration

    def load(self, path: str | Path) -> RunState:
        """Go on from a checkpoint: one `iter_*` folder, or the latest in a folder of them.

        Options of the optimizer and of the schedules are those of this run.

        Collectives: those of `read_tensors`.

        Raises:
            ConfigError: no complete checkpoint, one without the state of a run, other options of the model, or other
                tensors.
        """
        folder = resolve_checkpoint(path)
        description = read_run_description(folder)
        compare_options(folder, description["options"], self._context.config)
        self._load_tensors(folder, description["optimizer_updates"])
        self._restore_scheduler(description["scheduler_steps"])
        state = RunState(**description["run"])
        same_seed = description["options"]["training"]["seed"] == self._context.config.training.seed
        self._restore_random_state(folder, same_seed and description["layout"] == parallel_layout(self._context), state)
        if self._root is not None and folder.parent.resolve() == self._root.resolve():
            self._saved_iteration = state.iteration
        return state

    def _load_tensors(self, folder: Path, optimizer_updates: int) -> None:
        """Weights and the state of the optimizer. Collectives: those of `read_tensors`."""
        policy = self._policy
        vocab_size = self._context.config.model.vocab_size
        assert vocab_size is not None
        loaded = read_tensors(folder, run_tensors(self._policy), groups=self._context.groups, vocab_size=vocab_size)
        copy_weights(policy.chunks, loaded["model"])
        weights = sharded_weights(policy.chunks)
        restore_optimizer_state(policy.optimizer, weights, loaded.get("optimizer", {}), optimizer_updates)

    def _restore_scheduler(self, num_steps: int) -> None:
        self._policy.scheduler.num_steps = 0
        self._policy.scheduler.step(increment=num_steps)

    def _restore_random_state(self, folder: Path, fits: bool, state: RunState) -> None:
        """The saved generators where seed and parallel layout are the same (`fits`); elsewhere, or where `load_rng` is
        off, generators seeded for this step."""
        context = self._context
        if context.config.checkpoint.load_rng and fits:
            restore_random_state(folder, context.platform)
        else:
            seed_everything(context.config.training.seed + state.iteration, context.groups)

    def _write_manifest(self, folder: Path) -> None:
        """With `verify_integrity`, the checksums of all files of a complete checkpoint; each rank has those of its own.

        Collectives: a gather of objects on rank 0 of the world, between hosts.
        """
        if not self._context.config.checkpoint.verify_integrity:
            return
        own = self._writer.take_checksums() | checksums([random_state_file(folder)])
        of_ranks: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, of_ranks, group=self._context.groups.host)
        if of_ranks is not None:
            write_manifest(folder, {name: value for of_rank in of_ranks for name, value in of_rank.items()})
