"""Checkpoints of a run: weights, optimizer, schedules, random generators and progress, through megatron-core's distributed checkpointing.

A checkpoint loads into any parallel layout, with or without the distributed optimizer. In the layout that wrote it the run goes on as if it
had not stopped; in another one the generators of dropout are seeded anew.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.platform import Platform
from megatron_lpc.platform.patches.checkpoint_results_queue import answer_through_results_file
from megatron_lpc.training.checkpoint_folder import (
    open_partial,
    partial_folder,
    publish,
    read_description,
    resolve_checkpoint,
    write_description,
)
from megatron_lpc.training.checkpoint_tensors import compare_options, copy_weights, read_tensors, sharded_weights
from megatron_lpc.training.optimizer_state import optimizer_updates, restore_optimizer_state, sharded_optimizer_state
from megatron_lpc.training.random_state import restore_random_state, save_random_state
from megatron_lpc.training.setup import seed_everything


@dataclass(kw_only=True)
class RunState:
    """How far a run is."""

    iteration: int = 0
    """Steps done."""
    consumed_samples: int = 0
    """Pairs seen."""
    bad_steps: int = 0
    """Steps skipped in a row until now."""
    train_iters: int = 0
    """Steps of the whole run; schedules are stretched to it."""
    positions: list[dict[str, Any]] = field(default_factory=list)
    """With streamed data, where the reader of each data parallel rank was; set in a checkpoint alone, and empty without a stream."""


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks."""

    def __init__(
        self,
        config: Config,
        platform: Platform,
        chunks: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
    ) -> None:
        self.config, self.platform, self.chunks, self.optimizer, self.scheduler = (
            config,
            platform,
            chunks,
            optimizer,
            scheduler,
        )
        self.root = Path(config.checkpoint.save) if config.checkpoint.save else None
        self._kept: int | None = None
        self._pending = AsyncCallsQueue()
        answer_through_results_file()
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self._strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy(), group)

    def save(self, state: RunState) -> None:
        """Write a checkpoint into `save`; nothing where that is unset, or where this very step is kept already.

        An asynchronous save returns when tensors have been copied, and appears at a later `poll` or `finish`. Ranks share the folder.
        """
        if self.root is None or state.iteration == self._kept:
            return
        self.finish()
        root, iteration = self.root, state.iteration
        if dist.get_rank() == 0:
            open_partial(root, iteration)
        dist.barrier()
        partial = partial_folder(root, iteration)
        request = dist_checkpointing.save(
            self._tensors(loading=False),
            str(partial),
            self._strategy,
            async_sharded_save=self.config.checkpoint.async_save,
        )
        save_random_state(partial, self.platform)
        if dist.get_rank() == 0:
            write_description(partial, self._description(state))
        dist.barrier()

        def complete() -> None:
            if dist.get_rank() == 0:
                publish(root, iteration, self.config.checkpoint.keep_last)

        if request is None:
            complete()
        else:
            request.add_finalize_fn(complete)
            self._pending.schedule_async_request(request)
        self._kept = iteration

    def poll(self) -> None:
        """Complete an asynchronous save that has been written; call it every step. One all-reduce while a save is pending."""
        self._pending.maybe_finalize_async_calls()

    def finish(self) -> None:
        """Wait until all saves are complete."""
        self._pending.maybe_finalize_async_calls(blocking=True)

    def load(self, path: str | Path) -> RunState:
        """Go on from a checkpoint: one `iter_*` folder, or the newest in a folder of them.

        Options of the optimizer and of the schedules are those of this run.

        Raises:
            ConfigError: no complete checkpoint, one without the state of a run, other options of the model, or other tensors.
        """
        folder = resolve_checkpoint(path)
        description = read_description(folder)
        if "run" not in description:
            raise ConfigError(
                f"{folder}: holds weights alone; start from it with --pretrained-checkpoint instead of --load"
            )
        compare_options(folder, description["options"], self.config)
        assert self.config.model.vocab_size is not None
        loaded = read_tensors(folder, self._tensors(loading=True), vocab_size=self.config.model.vocab_size)
        copy_weights(self.chunks, loaded["model"])
        restore_optimizer_state(
            self.optimizer, sharded_weights(self.chunks), loaded["optimizer"], description["optimizer_updates"]
        )
        self.scheduler.num_steps = 0
        self.scheduler.step(increment=description["scheduler_steps"])
        state = RunState(**description["run"])
        if description["layout"] == self._layout():
            restore_random_state(folder, self.platform)
        else:
            seed_everything(self.config.training.seed + state.iteration)
        if self.root is not None and folder.parent.resolve() == self.root.resolve():
            self._kept = state.iteration
        return state

    def _tensors(self, loading: bool) -> dict[str, Any]:
        if self.config.parallel.overlap_param_gather and not loading:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)  # The next forward pass would have gathered them.
        weights = sharded_weights(self.chunks)
        return {"model": weights, "optimizer": sharded_optimizer_state(self.optimizer, weights, loading)}

    def _description(self, state: RunState) -> dict[str, Any]:
        return {
            "run": asdict(state),
            "optimizer_updates": optimizer_updates(self.optimizer),
            "scheduler_steps": self.scheduler.num_steps,
            "layout": self._layout(),
            "options": asdict(self.config),
        }

    def _layout(self) -> dict[str, Any]:
        """On what the streams of random numbers depend."""
        parallel = self.config.parallel
        return {
            "world_size": dist.get_world_size(),
            "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
            "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
            "num_virtual_stages_per_pipeline_rank": parallel.num_virtual_stages_per_pipeline_rank,
            "sequence_parallel": parallel.sequence_parallel,
            "device": self.platform.device.type,
        }
