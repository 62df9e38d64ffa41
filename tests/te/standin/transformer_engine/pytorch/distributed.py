"""Recomputation, and trackers of random states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint


class CudaRNGStatesTracker:
    """megatron-core derives a class from it; it is not used without CUDA graphs."""


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    assert not kwargs.pop("distribute_saved_activations", False)
    kwargs.pop("get_rng_state_tracker", None)
    kwargs.pop("tp_group", None)
    assert not kwargs, f"TransformerEngine would pass {list(kwargs)} to the function"
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=True)


@contextmanager
def activation_recompute_forward(activation_recompute: bool = False, recompute_phase: bool = False) -> Iterator[None]:
    yield


def is_fp8_activation_recompute_enabled() -> bool:
    return False


def get_all_rng_states() -> dict[str, Any]:
    return {}
