"""Processes, groups and seeds: everything that must exist before a model is built."""

from __future__ import annotations

import os
import random
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_lpc.config import Config, ConfigError, validate
from megatron_lpc.platform import Platform, select_platform


def start_distributed(config: Config) -> Platform:
    """Validate the options, join the process group that `torchrun` describes in the environment, split it, and seed every generator.

    Without `torchrun` the process is alone.

    Raises:
        ConfigError: the options cannot work with this many processes on this device.
    """
    for name, alone in (
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),
    ):
        os.environ.setdefault(name, alone)
    try:
        platform = select_platform(config.parallel.device, int(os.environ["LOCAL_RANK"]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    validate(config, int(os.environ["WORLD_SIZE"]), platform.device.type)

    from megatron.core import parallel_state

    timeout = timedelta(minutes=config.parallel.distributed_timeout_minutes)
    dist.init_process_group(platform.backend, timeout=timeout)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.parallel.num_virtual_stages_per_pipeline_rank,
        distributed_timeout_minutes=config.parallel.distributed_timeout_minutes,
    )
    seed_everything(config.training.seed)
    return platform


def seed_everything(seed: int) -> None:
    """Seed Python's, torch's and megatron-core's generators. Pipeline stages differ, so that their dropout does (as Megatron-LM)."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(seed)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def stop_distributed() -> None:
    """Leave all groups."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
