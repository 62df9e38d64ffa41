"""The trainer's own collectives: numbers that the last pipeline stage knows, brought to every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_lpc.platform import Platform
from megatron_lpc.platform.process_groups import ProcessGroups

T = TypeVar("T")
_MAX_DIMS = 4


def from_last_stage(tensor: Tensor | None, groups: ProcessGroups, device: torch.device) -> Tensor:
    """Hand a tensor of the last pipeline stage to the other stages.

    Collectives: two broadcasts (shape, then fp64 values) over the pipeline group; none when there is one stage.

    Args:
        tensor: fp64 of at most four dimensions, on the last stage; ignored elsewhere.
        device: where the result is wanted on the other stages.
    """
    if groups.pp.size() == 1:
        assert tensor is not None
        return tensor
    source = groups.last_stage_rank
    shape = torch.full((_MAX_DIMS,), -1, dtype=torch.int64, device=device)
    if groups.is_last_stage:
        assert tensor is not None
        shape[: tensor.ndim] = torch.tensor(tensor.shape)
    dist.broadcast(shape, source, group=groups.pp)
    if tensor is None or not groups.is_last_stage:
        sizes = [size for size in shape.tolist() if size >= 0]
        tensor = torch.empty(sizes, dtype=torch.float64, device=device)
    dist.broadcast(tensor, source, group=groups.pp)
    return tensor


def from_data_parallel_ranks(item: T, groups: ProcessGroups) -> list[T]:
    """What each data parallel rank gives, by rank.

    Collectives: an all-gather of objects over the data parallel group.
    """
    items: list[Any] = [None] * groups.dp_size
    dist.all_gather_object(items, item, group=groups.dp)
    return items


def largest_on_any_rank(number: int, groups: ProcessGroups) -> int:
    """The largest of the numbers of all ranks. The host does not wait for its device.

    Collectives: one all-reduce (MAX of one int64) over the world, between hosts.
    """
    numbers = torch.tensor([number])
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=groups.host)
    return int(numbers.item())


class MetricReducer:
    """Sums the metrics of a step over micro-batches and data parallel ranks, once per step, for every rank.

    The names and shapes of the metrics do not change during a run; ranks that do not compute them learn them at the
    first step.
    """

    def __init__(self, groups: ProcessGroups, platform: Platform) -> None:
        self._groups = groups
        self._platform = platform
        self._shapes: list[tuple[str, torch.Size]] | None = None

    def __call__(self, sums: dict[str, Tensor] | None) -> Callable[[], dict[str, Tensor]]:
        """Start to sum.

        Collectives: one all-reduce over the data parallel group on the last stage, then a broadcast over the pipeline
        group; at the first step also a broadcast of the names and shapes over the pipeline group.

        Args:
            sums: this rank's sums, on the last pipeline stage; None elsewhere.

        Returns:
            A function that gives the totals, fp64 on the CPU; it waits for the device, unless the host has done so
            since.
        """
        if self._shapes is None:
            self._shapes = self._shapes_of_last_stage(sums)
        shapes = self._shapes
        sizes = [shape.numel() for _, shape in shapes]
        if sums is None:
            packed = torch.empty(sum(sizes), dtype=torch.float64, device=self._platform.device)
        else:
            packed = torch.cat([sums[name].double().reshape(-1) for name, _ in shapes])
            dist.all_reduce(packed, group=self._groups.dp)
        if self._groups.pp.size() > 1:
            dist.broadcast(packed, self._groups.last_stage_rank, group=self._groups.pp)
        values = self._platform.start_copy_to_host(packed)

        def totals() -> dict[str, Tensor]:
            parts = values().split(sizes)
            return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}

        return totals

    def _shapes_of_last_stage(self, sums: dict[str, Tensor] | None) -> list[tuple[str, torch.Size]]:
        """Collectives: a broadcast of one object over the pipeline group."""
        shapes = [[(name, value.shape) for name, value in sums.items()] if sums else None]
        source = self._groups.last_stage_rank
        dist.broadcast_object_list(shapes, source, group=self._groups.pp, device=self._platform.device)
        assert shapes[0] is not None
        return shapes[0]
