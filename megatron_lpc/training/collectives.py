"""The trainer's own collectives: numbers that the last pipeline stage knows, brought to every rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_lpc.training.pipeline import on_last_stage

T = TypeVar("T")


def from_last_stage(tensor: Tensor | None, device: torch.device) -> Tensor:
    """Hand a tensor of the last pipeline stage to the other stages.

    Collectives: two broadcasts (shape, then fp64 values) over the pipeline group; none when there is one stage.

    Args:
        tensor: fp64, on the last stage; ignored elsewhere.
        device: where the result shall be on the other stages.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() == 1:
        assert tensor is not None
        return tensor
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    shape = torch.full((4,), -1, dtype=torch.int64, device=device)
    if tensor is not None and on_last_stage():
        shape[: tensor.ndim] = torch.tensor(tensor.shape)
    dist.broadcast(shape, source, group=group)
    if tensor is None or not on_last_stage():
        tensor = torch.empty([size for size in shape.tolist() if size >= 0], dtype=torch.float64, device=device)
    dist.broadcast(tensor, source, group=group)
    return tensor


def from_data_parallel_ranks(item: T) -> list[T]:
    """What each data parallel rank gives, by rank. Collective: an all-gather of objects over the data parallel group."""
    group = parallel_state.get_data_parallel_group()
    items: list[Any] = [None] * group.size()
    dist.all_gather_object(items, item, group=group)
    return items


class MetricReducer:
    """Sums the metrics of a step over micro-batches and data parallel ranks, once a step, for every rank.

    The names and sizes of the metrics do not change during a run; ranks that do not compute them learn them at the first step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.layout: list[tuple[str, tuple[int, ...]]] | None = None

    def __call__(self, sums: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Totals on the CPU, fp64.

        Collectives: one all-reduce over the data parallel group on the last stage, one broadcast over the pipeline group.

        Args:
            sums: this rank's sums, on the last pipeline stage; None elsewhere.
        """
        if self.layout is None:
            layouts = [[(name, tuple(value.shape)) for name, value in sums.items()] if sums else None]
            group = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast_object_list(
                layouts, parallel_state.get_pipeline_model_parallel_last_rank(), group=group, device=self.device
            )
            assert layouts[0] is not None
            self.layout = layouts[0]
        vector = None
        if sums is not None:
            vector = torch.cat([sums[name].double().reshape(-1) for name, _ in self.layout])
            dist.all_reduce(vector, group=parallel_state.get_data_parallel_group())
        values = from_last_stage(vector, self.device).cpu()
        sizes = [torch.Size(shape).numel() for _, shape in self.layout]
        return {name: part.view(shape) for (name, shape), part in zip(self.layout, values.split(sizes), strict=True)}
