"""Processes, groups and seeds: everything that must exist before a model is built."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megatron_lpc.command_line import warn
from megatron_lpc.config import Config, ConfigError, validate, with_options
from megatron_lpc.platform import Platform, select_platform
from megatron_lpc.training.determinism import use_deterministic_algorithms
from megatron_lpc.training.failure import end_waiting
from megatron_lpc.training.follow_padding import follow_padding
from megatron_lpc.training.heartbeat import start_heartbeat, stop_heartbeat
from megatron_lpc.training.rank_log import close_rank_log, open_rank_log

if TYPE_CHECKING:
    from megatron_lpc.platform.process_groups import ProcessGroups

_SINGLE_PROCESS = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What `torchrun` would put into the environment of a single process."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every part of a run is built from. It is never changed; `dataclasses.replace` gives another one."""

    config: Config
    platform: Platform
    groups: ProcessGroups


def start_distributed(config: Config) -> RunContext:
    """Validate the options, join the processes that `torchrun` started, make the groups, and seed every generator.

    A process that `torchrun` did not start is a world of one.

    Collectives: the rendezvous of all ranks, and those in which megatron-core makes its groups.

    Raises:
        ConfigError: the options cannot work with this many processes on this device.
    """
    for name, value in _SINGLE_PROCESS.items():
        os.environ.setdefault(name, value)
    try:
        platform = select_platform(config.parallel.device, int(os.environ["LOCAL_RANK"]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    world_size = int(os.environ["WORLD_SIZE"])
    config = follow_padding(config)
    validate(config, world_size, platform.device.type)
    use_deterministic_algorithms(config, platform.device.type, world_size)
    open_rank_log(config.logging.rank_log_dir, int(os.environ["RANK"]))
    timeout = timedelta(minutes=config.parallel.distributed_timeout_minutes)
    if config.parallel.tensor_model_parallel_size > 1 and not platform.starts_kernels_in_order:
        warn(
            "CUDA_DEVICE_MAX_CONNECTIONS is not 1: tensor parallel collectives will not overlap with computation on "
            "this GPU; set CUDA_DEVICE_MAX_CONNECTIONS=1 in the environment of all ranks"
        )
    # The device binds NCCL's communicators to it, so that no collective has to guess.
    device_id = platform.device if platform.is_cuda else None
    dist.init_process_group(platform.backend, timeout=timeout, device_id=device_id)
    start_heartbeat(timeout.total_seconds(), end_waiting)
    return split_world(config, platform)


def split_world(config: Config, platform: Platform) -> RunContext:
    """Make the process groups of a parallel layout within processes that have joined, and seed every generator.

    Collectives: those in which megatron-core makes its groups, over the world.
    """
    from megatron_lpc.platform.process_groups import initialize_process_groups

    parallel = config.parallel
    groups = initialize_process_groups(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        num_virtual_stages_per_pipeline_rank=parallel.num_virtual_stages_per_pipeline_rank,
        timeout_minutes=parallel.distributed_timeout_minutes,
    )
    seed_everything(config.training.seed, groups)
    return RunContext(config=resolve_device_defaults(config, platform), platform=platform, groups=groups)


def resolve_device_defaults(config: Config, platform: Platform) -> Config:
    """The options with `bf16` filled in where it is unset: on for a GPU, off for a CPU. Checkpoints store it so."""
    if config.training.bf16 is not None:
        return config
    return with_options(config, bf16=platform.is_cuda)


def seed_everything(seed: int, groups: ProcessGroups) -> None:
    """Seed Python's, torch's and megatron-core's generators.

    Pipeline stages get different seeds, so that their dropout differs (as in Megatron-LM).
    """
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    seed += 100 * groups.pp.rank()
    random.seed(seed)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def stop_distributed() -> None:
    """Leave all groups."""
    from megatron_lpc.platform.process_groups import destroy_process_groups

    stop_heartbeat()
    destroy_process_groups()
    dist.destroy_process_group()
    close_rank_log()
