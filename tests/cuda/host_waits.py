"""Finds where the host waits for a (fake) GPU, and hands out a value that lets the program go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
_PACKAGES = ("/megatron_lpc/", "/lpc_kernels/", "/megatron/core/")
_LARGEST_KNOWN = 1 << 16
"""Elements of a tensor whose values are followed."""
_WITHOUT_VALUES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_FILLED = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_", "fill_")
"""Operators whose result does not depend on the values of their first argument."""
_SIZE_FROM_VALUES = ("nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "repeat_interleave")
"""Operators whose result is as large as the values of their input say: the host waits for its size."""


@dataclass(frozen=True)
class Wait:
    """The host waited."""

    kind: str
    """What made it wait."""
    line: str
    """`file:number function` of the innermost line of the project, or of megatron-core."""


class HostWaits(TorchDispatchMode):
    """Counts waits while it is entered, within a FakeTensorMode.

    A value that the host reads is the true one where it follows from values on the host, as what is derived from a
    batch does. Elsewhere it is 1, and an index found by `topk` or `argmax` is made up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Wait] = []
        self.enqueued = 0
        """Operators that the device was given."""
        self.done = 0
        """Of which the host has waited for so many."""
        self.received: Tensor | None = None
        """Values of what `recv` receives, where that are three int64."""
        self._pinned: dict[int, Any] = {}

    def wait(self, kind: str, since: int | None = None) -> None:
        """The host waits for all work, or for the first `since` operators, which may be over."""
        if since is not None and since <= self.done:
            return
        self.done = self.enqueued if since is None else since
        self.found.append(Wait(kind, calling_line()))

    def pin(self, tensor: Tensor) -> Tensor:
        """The tensor, whose memory counts as pinned from now on."""
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = storage  # Held, so that the number is not given to another one.
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._pinned

    def values(self, tensor: Tensor) -> Tensor:
        """What the host reads of a tensor: one wait for all elements."""
        if tensor.is_cuda:
            self.wait("read by the host")
        value = known(tensor)
        with unset_fake_temporarily():
            return torch.ones(tensor.shape, dtype=tensor.dtype) if value is None else value

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pins = kwargs.pop("pin_memory", False)
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "_local_scalar_dense":
            value = self.values(args[0])
            with unset_fake_temporarily():
                return value.item()
        if name == "equal":
            self.wait("equal")
            return True
        self._note_copy(name, args, kwargs)
        if name == "repeat_interleave" and (len(args) > 1 or kwargs.get("output_size") is not None):
            result = func(*args, **kwargs)
            self._follow(func, args, kwargs, result)
        elif name == "index_put_" and _has_mask(args):
            result = self._masked_assignment(args)
        elif name in _SIZE_FROM_VALUES or (name == "index" and _has_mask(args)):
            result = self._sized_by_values(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
            self._follow(func, args, kwargs, result)
        if any(tensor.is_cuda for tensor in tensors):
            self.enqueued += 1
        return self.pin(result) if pins else result

    def _note_copy(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Record a copy between host and device for which the host waits."""
        if name == "_to_copy":
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            asynchronous = kwargs.get("non_blocking", False)
            # torch copies to the host without waiting into memory that it pins itself.
            pinned = target.type == "cpu" or self.is_pinned(source)
        elif name == "copy_":
            target, source = args[0].device, args[1]
            asynchronous = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
            pinned = self.is_pinned(args[0] if target.type == "cpu" else source)
        else:
            return
        if source.device.type == target.type or (pinned and asynchronous):
            return
        self.wait("copy to the host" if target.type == "cpu" else "copy from memory that is not pinned")

    def _masked_assignment(self, args: Sequence[Any]) -> Tensor:
        """x[mask] = values: of a number it is `masked_fill_`, else the host waits for how many there are."""
        target, _, values = args[:3]
        if target.is_cuda and not (values.device.type == "cpu" and values.numel() == 1):
            self.wait("x[mask] = values")
        target.known_values = None
        return target

    def _sized_by_values(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))
        if device.type == "cuda":
            self.wait(f"size of {func.overloadpacket.__name__}")
        # The size follows from the mask, which must be known, and not from what it selects.
        if any(known(tensor) is None and not tensor.is_floating_point() for tensor in tensors):
            raise NotImplementedError(f"{func} of values that are not known, at {calling_line()}")
        values = _evaluate(func, args, kwargs, unknown_as_one=True)
        are_known = all(known(tensor) is not None for tensor in tensors)
        return tree_map(lambda x: _fake(x, device, are_known) if isinstance(x, Tensor) else x, values)

    def _follow(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        """Remember the values of a result that follows from values on the host."""
        name = func.overloadpacket.__name__
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if any(tensor.numel() > _LARGEST_KNOWN for tensor in results):
            return
        with unset_fake_temporarily():
            if name == "recv_" and self.received is not None and args[0][0].shape == self.received.shape:
                args[0][0].known_values = self.received
            elif name in ("_allgather_base_", "alltoall_base_"):  # From ranks that have the same values.
                received, sent = args[0], known(args[1])
                received.known_values = None if sent is None else _repeated(sent, received.shape)
            elif name in ("topk", "argmax"):
                number = args[1] if name == "topk" else 1
                indices = results[-1]
                indices.known_values = torch.arange(indices.numel()).view(indices.shape) % number
            elif results and func.namespace != "c10d":
                values = None
                if name not in _WITHOUT_VALUES:
                    values = _evaluate(func, args, kwargs, unknown_as_one=name in _FILLED)
                leaves = [None] * len(results) if values is None else tree_leaves(values)
                for fake, value in zip(results, leaves, strict=True):
                    fake.known_values = value


def known(tensor: Tensor) -> Tensor | None:
    """The values of a tensor, on the host; None where nobody knows them."""
    return getattr(tensor, "known_values", None) if isinstance(tensor, FakeTensor) else tensor


def calling_line() -> str:
    """`file:number function` of the innermost line of the project or of megatron-core."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        package = next((package for package in _PACKAGES if package in path), None)
        if package is not None:
            return f"{package[1:]}{path.split(package)[-1]}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "the autograd engine"


def _evaluate(func: Any, args: Sequence[Any], kwargs: dict[str, Any], unknown_as_one: bool = False) -> Any:
    """The result on the host, from values that are known; None where one is not, or 1 in its place."""
    unknown = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and known(x) is None]
    if unknown and not unknown_as_one:
        return None

    def on_host(x: Any) -> Any:
        if isinstance(x, torch.device):
            return torch.device("cpu")
        if not isinstance(x, Tensor):
            return x
        values = known(x)
        return torch.ones(x.shape, dtype=x.dtype) if values is None else values

    with unset_fake_temporarily():
        return func(*tree_map(on_host, args), **tree_map(on_host, kwargs))


def _repeated(values: Tensor, shape: torch.Size) -> Tensor:
    return torch.cat([values.flatten()] * (shape.numel() // values.numel())).view(shape)


def _has_mask(args: Sequence[Any]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _fake(values: Tensor, device: torch.device, are_known: bool) -> Tensor:
    fake = torch.empty(values.shape, dtype=values.dtype, device=device)
    fake.known_values = values if are_known else None  # type: ignore[attr-defined]
    return fake
