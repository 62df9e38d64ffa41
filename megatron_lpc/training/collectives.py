"""The trainer's own collectives: numbers that the last pipeline stage knows, brought to every rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank.

    Collectives: one all-reduce (MAX of one int64) over the world.
    """
    flags = torch.tensor([int(flag)], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


class MetricReducer:
    """Sums the metrics of a step over micro-batches and data parallel ranks, once per step, for every rank.

    The names and shapes of the metrics do not change during a run; ranks that do not compute them learn them at the
    first step.
    """

    def __init__(self, groups: ProcessGroups, device: torch.device) -> None:
        self._groups = groups
        self._device = device
        self._shapes: list[tuple[str, torch.Size]] | None = None

    def __call__(self, sums: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Totals on the CPU, fp64.

        Collectives: one all-reduce over the data parallel group on the last stage, then those of `from_last_stage`;
        at the first step also a broadcast of the names and shapes over the pipeline group.

        Args:
            sums: this rank's sums, on the last pipeline stage; None elsewhere.
        """
        if self._shapes is None:
            self._shapes = self._shapes_of_last_stage(sums)
        packed = None
        if sums is not None:
            packed = torch.cat([sums[name].double().reshape(-1) for name, _ in self._shapes])
            dist.all_reduce(packed, group=self._groups.dp)
        values = from_last_stage(packed, self._groups, self._device).cpu()
        parts = values.split([shape.numel() for _, shape in self._shapes])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes, parts, strict=True)}

    def _shapes_of_last_stage(self, sums: dict[str, Tensor] | None) -> list[tuple[str, torch.Size]]:
        """Collectives: a broadcast of one object over the pipeline group."""
        shapes = [[(name, value.shape) for name, value in sums.items()] if sums else None]
        source = self._groups.last_stage_rank
        dist.broadcast_object_list(shapes, source, group=self._groups.pp, device=self._device)
        assert shapes[0] is not None
        return shapes[0]
