"""States of this process's random generators on disk, one safetensors file per rank."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_lpc.config import ConfigError
from megatron_lpc.outside.messages import reason
from megatron_lpc.platform import Platform

_TRACKER = "tracker."


def save_random_state(folder: Path, platform: Platform) -> None:
    """Write the states of Python's, torch's and the device's generator, and of megatron-core's tracker."""
    version, integers, gauss = random.getstate()
    states = {
        "python": torch.tensor([version, *integers]),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "device": platform.generator_state(),
    }
    for name, state in get_cuda_rng_tracker().get_states().items():
        states[_TRACKER + name] = state
    # Copies, as safetensors refuses tensors that share memory.
    save_file({name: state.clone() for name, state in states.items()}, random_state_file(folder))


def restore_random_state(folder: Path, platform: Platform) -> None:
    """Set all generators as `save_random_state` found them on the same rank.

    Raises:
        ConfigError: the file holds something else.
    """
    try:
        _restore(load_file(random_state_file(folder)), platform)
    except (OSError, SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{random_state_file(folder)}: holds no states of generators ({reason(error)}); load another checkpoint, "
            "or set --no-load-rng"
        ) from error


def _restore(states: dict[str, Tensor], platform: Platform) -> None:
    version, *integers = states["python"].tolist()
    gauss = states["python_gauss"].tolist()
    random.setstate((version, tuple(integers), gauss[0] if gauss else None))
    torch.set_rng_state(states["torch"])
    platform.set_generator_state(states["device"])
    tracked = {name.removeprefix(_TRACKER): state for name, state in states.items() if name.startswith(_TRACKER)}
    get_cuda_rng_tracker().set_states(tracked)


def random_state_file(folder: Path) -> Path:
    """The file of this rank."""
    return folder / f"random_state_{dist.get_rank():05d}.safetensors"
