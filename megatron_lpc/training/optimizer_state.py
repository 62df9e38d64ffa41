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
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from torch import Tensor

from megatron_lpc.training.rectangles import sharded_piece

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MASTER = "fp32_param"


@dataclass(frozen=True)
class _Slot:
    """What this rank's optimizer keeps of one parameter: of all of it, or of a piece when the state is distributed."""

    parameter: Tensor
    """The model's own tensor."""
    tensors: dict[str, Tensor]
    """Moments, and the fp32 master weights where the model computes in less."""
    start: int | None = None
    """First element of the piece within the flattened parameter; None where this rank holds all of it, as others do."""


def sharded_optimizer_state(optimizer: MegatronOptimizer, model_state: dict[str, Any]) -> dict[str, Any]:
    """Name in the model's state -> name of the state -> sharded tensors, for megatron-core's `dist_checkpointing`.

    Only what this rank's optimizer holds. The tensors are views of the optimizer's own memory: nothing is gathered or
    copied, and what is loaded into them is in place.

    Args:
        model_state: sharded state dict of all chunks in one, whose leaves hold the model's own parameters.
    """
    leaves = {id(leaf.data): (name, leaf) for name, leaf in model_state.items()}
    state: dict[str, Any] = {}
    for slot in _all_slots(optimizer):
        name, leaf = leaves[id(slot.parameter)]
        state[name] = {kind: _sharded(leaf, slot, kind) for kind in slot.tensors}
    return state


@torch.no_grad()
def restore_optimizer_state(
    optimizer: MegatronOptimizer, model_state: dict[str, Any], loaded: dict[str, Any], step: int
) -> None:
    """Take over loaded tensors, structured as `sharded_optimizer_state` gives them, and the number of updates made.

    Learning rates, decay and betas stay those of the optimizer.
    """
    for name, kinds in sharded_optimizer_state(optimizer, model_state).items():
        for kind, tensors in kinds.items():
            for tensor, source in zip(tensors, loaded[name][kind], strict=True):
                tensor.data.copy_(source)
    for part in stateful_parts(optimizer):
        inner = part.optimizer
        if counts_by_parameter(inner):
            for state in inner.state.values():
                state["step"].fill_(step)
        else:
            for group in inner.param_groups:
                group["step"] = step


def optimizer_updates(optimizer: MegatronOptimizer) -> int:
    """Updates made so far, on which Adam's bias correction depends."""
    for part in stateful_parts(optimizer):
        inner = part.optimizer
        holders = inner.state.values() if counts_by_parameter(inner) else inner.param_groups
        for holder in holders:
            return int(holder.get("step", 0))
    return 0


def stateful_parts(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers of a chain that hold parameters."""
    return [part for part in getattr(optimizer, "chained_optimizers", [optimizer]) if not part.is_stub_optimizer]


def counts_by_parameter(inner: torch.optim.Optimizer) -> bool:
    """torch's Adam counts steps by parameter, TransformerEngine's and Apex's by group."""
    return isinstance(inner, (torch.optim.Adam, torch.optim.AdamW))


def _sharded(leaf: Any, slot: _Slot, kind: str) -> list[ShardedTensor]:
    piece = slot.tensors[kind].detach().view(-1)
    key = f"optimizer.state.{kind}.{leaf.key}"
    if slot.start is None:
        return sharded_piece(leaf, piece, 0, key=key)
    # The last number is the data parallel rank: no other one holds this piece.
    return sharded_piece(leaf, piece, slot.start, key=key, replica_id=(*leaf.replica_id[:2], 0))


def _all_slots(optimizer: MegatronOptimizer) -> Iterator[_Slot]:
    """Everything that the optimizer keeps on this rank; zero where it has made no step yet."""
    for part in stateful_parts(optimizer):
        part.init_state_fn(part.optimizer, part.config)
        if counts_by_parameter(part.optimizer):
            _start_counts(part.optimizer)
        yield from _slots(part)


def _start_counts(inner: torch.optim.Optimizer) -> None:
    """Set the steps that megatron-core's `init_state_fn` leaves out; torch takes state without them for complete."""
    for group in inner.param_groups:
        for parameter in group["params"]:
            # Where torch has it: the fused kernel reads it on the device. One each: torch adds to it in place.
            device = parameter.device if group["fused"] or group["capturable"] else "cpu"
            if "step" not in inner.state[parameter]:
                inner.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=device)


def _slots(part: Any) -> Iterator[_Slot]:
    if isinstance(part, DistributedOptimizer):
        for parameter, place in _places(part):
            group, order = part.model_param_group_index_map[parameter]
            main = part.optimizer.param_groups[group]["params"][order]
            yield _Slot(parameter, _tensors(part, parameter, main), place["param"].start)
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
