"""Padded query groups: the model is the leading block of every tensor of the checkpoint, and the rest is zeros.

That is so because megatron-core keeps queries, keys and values of a query group together: a group more is more rows of
`linear_qkv` and more columns of `linear_proj`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from megatron_lpc.config import ModelConfig
from megatron_lpc.convert.description import ModelDescription
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.convert.weights import Shape


def missing_query_groups(model: ModelConfig, multiple: int) -> int:
    """How many query groups a model lacks to a multiple.

    Raises:
        ConversionError: the multiple is below 1.
    """
    if multiple < 1:
        raise ConversionError(f"--make-query-groups-divisible-by {multiple}: must be at least 1")
    assert model.num_query_groups is not None
    return -model.num_query_groups % multiple


def padded_to(tensor: Tensor, shape: Shape) -> Tensor:
    """A tensor with zeros behind it, up to a shape that may be larger along any axis."""
    if tuple(tensor.shape) == shape:
        return tensor
    behind = [(0, wanted - size) for size, wanted in zip(tensor.shape, shape, strict=True)]
    return pad(tensor, [number for axis in reversed(behind) for number in axis])


def check_padding(source: MegatronFolder, described: ModelDescription) -> None:
    """Refuse a checkpoint whose padded query groups are not zeros: without them it would be another model.

    Raises:
        ConversionError: naming the tensor.
    """
    if not described.padded_query_groups:
        return
    stored = described.stored_model
    for weight in described.weights():
        shape, whole = weight.shape(described.model), weight.shape(stored)
        axes = [axis for axis, size in enumerate(whole) if size != shape[axis]]
        for axis in axes:
            offsets, sizes = [0] * len(whole), list(whole)
            offsets[axis], sizes[axis] = shape[axis], whole[axis] - shape[axis]
            for place in weight.places(stored):
                block = source.read(weight.name, (*place, *offsets), (1,) * len(place) + tuple(sizes))
                if block.any():
                    layer = "".join(f"[{index}]" for index in place)
                    raise ConversionError(
                        f"{source.folder}: {weight.name}{layer} is not 0 in the query groups that "
                        f"--padded-query-groups {described.padded_query_groups} counts, so without them it would be "
                        "another model; give a checkpoint that was trained from an import with this padding"
                    )
