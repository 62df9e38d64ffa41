"""Let megatron-core run on a CPU: real processes, real collectives, no GPU.

megatron-core 0.16 names CUDA directly in a few dozen places. Each patch below says which of them it stands for.
They are made once, only when the CPU platform is selected, and cost nothing in the inner loops.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

_CPU = torch.device("cpu")


@functools.cache
def redirect_megatron_to_cpu() -> None:
    """Replace every CUDA call that megatron-core makes while training. Irreversible for this process; later calls do nothing."""
    # torch collects the functions that obey `with torch.device(...)` at the first such block: it must find its own, not our replacements.
    with torch.device("cpu"):
        torch.empty(0)
    _redirect_factories()
    _redirect_cuda_module()
    _redirect_rng()
    _redirect_type_checks()


def _redirect_factories() -> None:
    """`device="cuda"` literals: token counters of the schedules, clip_grads, overflow flags, checkpoint savers, causal masks."""
    for name in (
        "tensor",
        "zeros",
        "ones",
        "empty",
        "full",
        "arange",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand",
        "randn",
    ):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    # ShardedTensor.init_data("cuda") of the fully parallel checkpoint loader uses Tensor.cuda; so do tied embeddings (language_module).
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def redirected(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return redirected


class _Event:
    """Stands for a mark in a CUDA stream."""

    def synchronize(self) -> None: ...


class _Stream:
    """Stands for a CUDA stream where work is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self, event: Any = None) -> _Event:
        """For the dispatcher of experts, which copies its counts to the host beside the main stream."""
        return _Event()

    def synchronize(self) -> None: ...


def _redirect_cuda_module() -> None:
    """`torch.cuda.current_device()` as a `device=` argument (everywhere); streams (DDP buffers); synchronize (barriers, timers, savers)."""
    cuda: Any = torch.cuda
    cuda.current_device = lambda: _CPU
    cuda.set_device = lambda device: None
    cuda.device_count = lambda: 1
    cuda.synchronize = lambda device=None: None
    cuda.empty_cache = lambda: None
    cuda.Stream = _Stream
    cuda.current_stream = lambda device=None: _Stream()
    cuda.default_stream = lambda device=None: _Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()


def _redirect_rng() -> None:
    """The RNG tracker and activation recomputation (tensor_parallel.random) keep and restore the CPU generator's state."""
    from megatron.core.tensor_parallel import random as megatron_random

    cuda: Any = torch.cuda
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = torch.default_generator.manual_seed
    megatron_random._get_cuda_rng_state = lambda device=None, clone=False, graph_safe=False: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, device=None, graph_safe=False: torch.set_rng_state(state)


@contextlib.contextmanager
def _cuda_type_names() -> Iterator[None]:
    """Within, `tensor.type()` answers `torch.cuda.FloatTensor` for `torch.FloatTensor`."""
    original = torch.Tensor.type

    def named(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = named  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]


def _redirect_type_checks() -> None:
    """The optimizers sort parameters by the string `torch.cuda.FloatTensor` or `torch.cuda.BFloat16Tensor` of `param.type()`."""
    from megatron.core.optimizer import clip_grads, distrib_optimizer, optimizer

    def with_names(function: Callable[..., Any]) -> Callable[..., Any]:
        return _cuda_type_names()(function)

    clip = with_names(clip_grads.clip_grad_by_total_norm_fp32)
    clip_grads.clip_grad_by_total_norm_fp32 = optimizer.clip_grad_by_total_norm_fp32 = clip
    for cls in (optimizer.Float16OptimizerWithFloat16Params, distrib_optimizer.DistributedOptimizer):
        cls.__init__ = with_names(cls.__init__)
