"""The optimizer's state in the shape of the model's parameters.

That is what a checkpoint keeps, whatever optimizer and parallel layout wrote it.

megatron-core 0.16 has `sharded_state_dict` for this. With torch's AdamW it loses the step of a distributed optimizer,
hands one step tensor to all parameters, and copies into views of leaves. With any Adam it misplaces what follows the
padding between two gradient buckets (tied embeddings under pipeline parallelism, overlapped reduction). And a plain and
a distributed optimizer cannot read each other. So only its maps of parameters are used here. Names of tensors are those
that megatron-core gives to a plain optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MASTER = "fp32_param"


@dataclass(frozen=True)
class _Slot:
    """What this rank's optimizer keeps of one parameter: of all of it, or of a piece when the state is distributed."""

    parameter: Tensor
    """The model's own tensor."""
    tensors: dict[str, Tensor]
    """Moments, and the fp32 master weights where the model computes in less."""
    start: int = 0
    """First element of the piece within the flattened parameter."""
    shard_start: int = 0
    """First element of the piece within this rank's shard of its bucket."""


def sharded_optimizer_state(optimizer: MegatronOptimizer, model_state: dict[str, Any], loading: bool) -> dict[str, Any]:
    """Name in the model's state -> name of the state -> sharded tensor, for megatron-core's `dist_checkpointing`.

    Collectives when saving distributed state: one all-gather per bucket and kind of state over the data parallel group.
    Memory: with distributed state, fp32 tensors of this rank's whole parameters on the host.

    Args:
        model_state: sharded state dict of all chunks in one, whose leaves hold the model's own parameters.
        loading: leave tensors empty where they are to be filled.
    """
    leaves = {id(leaf.data): (name, leaf) for name, leaf in model_state.items()}
    state: dict[str, Any] = {}
    for part in _parts(optimizer):
        for parameter, kind, tensor in _whole_tensors(part, loading):
            name, leaf = leaves[id(parameter)]
            changes: dict[str, Any] = {"key": f"optimizer.state.{kind}.{leaf.key}", "data": tensor}
            if not isinstance(leaf, ShardedTensorFactory):
                changes["dtype"] = tensor.dtype
            state.setdefault(name, {})[kind] = replace(leaf, **changes)
    return state


@torch.no_grad()
def restore_optimizer_state(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], loaded: dict[str, Any], step: int
) -> None:
    """Take over loaded tensors, structured as `sharded_optimizer_state` gives them, and the number of updates made.

    Learning rates, decay and betas stay those of the optimizer.
    """
    names = {id(leaf.data): name for name, leaf in model_state.items()}
    for part in _parts(optimizer):
        for slot in _slots(part):
            for kind, tensor in slot.tensors.items():
                whole = loaded[names[id(slot.parameter)]][kind].flatten()
                tensor.copy_(whole[slot.start : slot.start + tensor.numel()].view_as(tensor))
        inner = part.optimizer
        if _counts_by_parameter(inner):
            for state in inner.state.values():
                state["step"] = torch.tensor(float(step), dtype=torch.float32)  # One each: torch adds to it in place.
        else:
            for group in inner.param_groups:
                group["step"] = step


def optimizer_updates(optimizer: MegatronOptimizer) -> int:
    """Updates made so far, on which Adam's bias correction depends."""
    for part in _parts(optimizer):
        inner = part.optimizer
        holders = inner.state.values() if _counts_by_parameter(inner) else inner.param_groups
        for holder in holders:
            return int(holder.get("step", 0))
    return 0


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers of a chain that hold parameters."""
    return [part for part in getattr(optimizer, "chained_optimizers", [optimizer]) if not part.is_stub_optimizer]


def _counts_by_parameter(inner: torch.optim.Optimizer) -> bool:
    """torch's Adam counts steps by parameter, TransformerEngine's and Apex's by group."""
    return isinstance(inner, (torch.optim.Adam, torch.optim.AdamW))


def _slots(part: Any) -> Iterator[_Slot]:
    """Everything that one optimizer keeps on this rank; zero where it has made no step yet."""
    part.init_state_fn(part.optimizer, part.config)
    if isinstance(part, DistributedOptimizer):
        for parameter, place in _places(part):
            group, order = part.model_param_group_index_map[parameter]
            main = part.optimizer.param_groups[group]["params"][order]
            yield _Slot(parameter, _tensors(part, parameter, main), place["param"].start, place["gbuf_local"].start)
    elif isinstance(part, Float16OptimizerWithFloat16Params):
        for parameters, mains in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
            for parameter, main in zip(parameters, mains, strict=True):
                yield _Slot(parameter, _tensors(part, parameter, main))
        for parameter in (parameter for group in part.fp32_from_fp32_groups for parameter in group):
            yield _Slot(parameter, _tensors(part, parameter, parameter))
    else:
        for parameter in part.get_parameters():
            yield _Slot(parameter, _tensors(part, parameter, parameter))


def _places(part: DistributedOptimizer) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter of which this rank holds a piece, and where that lies."""
    for buffer_ranges in part.gbuf_ranges:
        for bucket_ranges in buffer_ranges.values():
            for bucket in bucket_ranges:
                yield from bucket["param_map"].items()


def _tensors(part: Any, parameter: Tensor, main: Tensor) -> dict[str, Tensor]:
    tensors = {kind: part.optimizer.state[main][kind] for kind in _MOMENTS}
    if parameter.dtype != torch.float32:
        tensors[_MASTER] = main
    return tensors


@torch.no_grad()
def _whole_tensors(part: Any, loading: bool) -> Iterator[tuple[Tensor, str, Tensor]]:
    """(parameter, name of the state, tensor of the parameter's shape) of every parameter of this rank."""
    if not isinstance(part, DistributedOptimizer):
        for slot in _slots(part):
            for kind, tensor in slot.tensors.items():
                yield slot.parameter, kind, tensor
        return
    slots = {id(slot.parameter): slot for slot in _slots(part)}
    for buffer in part.buffers:
        kinds = _MOMENTS if buffer.param_dtype == torch.float32 else (*_MOMENTS, _MASTER)
        for bucket in buffer.buckets:
            for kind in kinds:
                whole = None if loading else _gather(bucket, kind, slots, part.data_parallel_group)
                for parameter in bucket.params_list:
                    start, end, _ = buffer.param_index_map[parameter]
                    if whole is None:
                        yield parameter, kind, torch.empty(parameter.shape, dtype=torch.float32)
                    else:
                        yield parameter, kind, whole[start - bucket.offset : end - bucket.offset].view(parameter.shape)


def _gather(bucket: Any, kind: str, slots: dict[int, _Slot], group: dist.ProcessGroup) -> Tensor:
    """All elements of one state of one bucket, on the host."""
    size = bucket.grad_data.numel()
    shard = torch.zeros(size // group.size(), dtype=torch.float32, device=bucket.grad_data.device)
    for slot in (slots[id(parameter)] for parameter in bucket.params_list if id(parameter) in slots):
        tensor = slot.tensors[kind]
        shard[slot.shard_start : slot.shard_start + tensor.numel()] = tensor.flatten()
    whole = shard.new_empty(size)
    dist.all_gather_into_tensor(whole, shard, group=group)
    return whole.cpu()
