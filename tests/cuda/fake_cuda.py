"""A process that believes it has a GPU: `torch.cuda` answers, NCCL is the `fake` backend, Triton launches nothing.

Tensors are torch's FakeTensors on the device `cuda:0`: they have shapes, dtypes and a device, and no memory. So the
project's CUDA branch runs on them, its own launch code included, up to the launch itself.

`fake_cuda.cpp` must be loaded before torch is imported, and `megatron_lpc` imported before `pretend` is called.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from host_waits import HostWaits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._meta_registrations import create_fakework
from torch.testing._internal.distributed.fake_pg import FakeStore

DEVICE = torch.device("cuda", 0)
_COALESCED = ("allreduce_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_tensor_coalesced_")
_collectives = torch.library.Library("c10d", "IMPL")


def pretend(waits: HostWaits) -> None:
    """Change torch, Triton and megatron-core in this process, for good."""
    _pretend_runtime(waits)
    _pretend_generators()
    _pretend_pinned_memory(waits)
    _pretend_kernels()
    _pretend_groups()
    # Never try to copy a constant to the device for real.
    FakeTensorMode.avoid_device_init = True
    torch.nn.Module._apply = _apply
    # Assigning `data` gives a fake tensor another device too; an address tells two of them apart.
    FakeTensor.data = property(torch.Tensor.data.__get__, _set_data)
    FakeTensor.record_stream = lambda self, stream: None
    FakeTensor.numpy = lambda self, force=False: np.array(waits.values(self).tolist())
    FakeTensor.tolist = lambda self: waits.values(self).tolist()
    FakeTensor.data_ptr = lambda self: self.untyped_storage()._cdata


def join_world(rank: int, world_size: int) -> None:
    """Be one rank of a world whose other ranks do not exist."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def _set_data(tensor: FakeTensor, data: FakeTensor) -> None:
    torch.Tensor.data.__set__(tensor, data)
    tensor.fake_device = data.device


@torch.no_grad()
def _apply(module: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """`torch.nn.Module._apply` by assigning `data`, which torch does not do for fake tensors."""
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            parameter.data = function(parameter.data)
        for name, buffer in child.named_buffers(recurse=False):
            setattr(child, name, function(buffer))
    return module


def _pretend_runtime(waits: HostWaits) -> None:
    class Event:
        """Waits for the work that was enqueued when it was recorded."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.recorded = 0

        def record(self, stream: Any = None) -> None:
            self.recorded = waits.enqueued

        def synchronize(self) -> None:
            waits.wait("Event.synchronize", since=self.recorded)

        def wait(self, stream: Any = None) -> None: ...

    class Stream:
        """One of those that share the device's one queue."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def wait_stream(self, stream: Any) -> None: ...

        def wait_event(self, event: Any) -> None: ...

        def record_event(self, event: Any = None) -> Event:
            event = event or Event()
            event.record()
            return event

        def synchronize(self) -> None:
            waits.wait("Stream.synchronize")

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "NVIDIA H100 80GB HBM3",
        "get_device_capability": lambda device=None: (9, 0),
        "synchronize": lambda device=None: waits.wait("torch.cuda.synchronize"),
        "empty_cache": lambda: None,
        "Event": Event,
        "Stream": Stream,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "_lazy_init": lambda: None,
        "_lazy_call": lambda function, **options: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)


def _pretend_generators() -> None:
    """There is no dropout in the cases: random states are passed around and never drawn from."""
    from megatron.core.tensor_parallel import random as megatron_random

    state = torch.get_rng_state()
    torch.cuda.get_rng_state = lambda device=None: state
    torch.cuda.set_rng_state = lambda new_state, device=None: None
    torch.cuda.manual_seed = lambda seed: None
    megatron_random._get_cuda_rng_state = lambda *args, **options: state
    megatron_random._set_cuda_rng_state = lambda *args, **options: None
    torch.get_rng_state = lambda: state
    torch.set_rng_state = lambda new_state: None


def _pretend_pinned_memory(waits: HostWaits) -> None:
    def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
        assert tensor.device.type == "cpu", f"pin_memory of a tensor on {tensor.device}"
        return waits.pin(tensor.clone())

    torch.Tensor.pin_memory = pin_memory
    torch.Tensor.is_pinned = lambda tensor, device=None: waits.is_pinned(tensor)


def _pretend_kernels() -> None:
    """Triton's launches leave their outputs as they are; fused attention gives what has the right shape."""
    from lpc_kernels.gumbel_mix import ops as gumbel_ops
    from lpc_kernels.pair_logps import frozen, recompute, scoring
    from triton.runtime.jit import JITFunction

    from megatron_lpc.model import attention, flex_attention, norm
    from megatron_lpc.platform.patches.patch import replace

    JITFunction.run = lambda self, *args, **options: None
    # An operator of torch.library runs its declared shapes on fake tensors. Ours run their launch code.
    for module in (gumbel_ops, frozen, recompute, scoring):
        for operator in vars(module).values():
            if isinstance(operator, torch.library.CustomOpDef):
                torch.library.register_fake(operator, operator._init_fn, allow_override=True)
    replace(torch.nn.functional, "rms_norm", _rms_norm)
    replace(norm, "rms_norm", _rms_norm)
    replace(attention, "scaled_dot_product_attention", _scaled_dot_product_attention)
    replace(flex_attention, "compiled_flex_attention", lambda: _flex_attention)


class _Fused(torch.autograd.Function):
    """One kernel, whose result is like its first input; gradients are like the inputs."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return torch.empty_like(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


def _rms_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    assert x.dtype == weight.dtype, "no fused kernel takes two dtypes"
    return _Fused.apply(x, weight)


def _scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Raises AssertionError where no fused kernel would take it, or the S x S scores are allowed."""
    assert not torch.backends.cuda.math_sdp_enabled(), "the kernel that holds the S x S scores is allowed"
    assert query.device == key.device == value.device == DEVICE
    if options["enable_gqa"]:
        assert options["attn_mask"] is None
        assert query.dtype == torch.bfloat16, "no fused kernel takes groups in fp32"
    return _Fused.apply(query, key, value)


def _flex_attention(query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, **options: Any) -> Tensor:
    assert block_mask.kv_indices.device == query.device == DEVICE
    assert block_mask.seq_lengths == (query.size(2), key.size(2))
    return _Fused.apply(query, key, value)


def _pretend_groups() -> None:
    """All groups are fake. Ranks gather the same objects; one is broadcast from the rank that was pretended before."""
    new_group = dist.new_group
    objects: list[Any] = []

    def fake_group(*args: Any, **options: Any) -> Any:
        return new_group(*args, **options | {"backend": "fake"})

    def broadcast_object_list(items: list[Any], src: int, group: Any = None, device: Any = None) -> None:
        if dist.get_rank() == src:
            objects[:] = copy.deepcopy(items)
        else:
            items[:] = copy.deepcopy(objects)

    def all_gather_object(items: list[Any], item: Any, group: Any = None) -> None:
        items[:] = [copy.deepcopy(item) for _ in items]

    # As torch itself does for the other collectives.
    for name in _COALESCED:
        _collectives.impl(name, lambda *args: create_fakework(args, return_first_arg=False), "Meta")
    dist.new_group = fake_group
    dist.all_gather_object = all_gather_object
    dist.broadcast_object_list = broadcast_object_list


@contextlib.contextmanager
def received_shapes(waits: HostWaits, shape: tuple[int, ...]) -> Iterator[None]:
    """Within, a stage that asks another one for the shape of its tensor is told this one."""
    waits.received = torch.tensor(shape)
    yield
    waits.received = None
