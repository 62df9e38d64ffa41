from __future__ import annotations

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

from megatron_lpc.training.rectangles import rectangles, sharded_piece


@pytest.mark.parametrize("shape", [(), (7,), (4, 5), (1, 6), (3, 1), (3, 4, 5)], ids=str)
def test_rectangles_are_the_piece_in_its_order(shape: tuple[int, ...]) -> None:
    elements = torch.arange(torch.Size(shape).numel()).view(shape)
    for start in range(elements.numel() + 1):
        for end in range(start, elements.numel() + 1):
            found = list(rectangles(shape, start, end))
            assert len(found) <= max(1, 2 * len(shape) - 1)
            parts = []
            for offset, sizes in found:
                region = tuple(slice(o, o + s) for o, s in zip(offset, sizes, strict=True))
                parts += elements[region].flatten().tolist()
            assert parts == list(range(start, end))


def placed(tensors: list[ShardedTensor], shape: tuple[int, ...]) -> torch.Tensor:
    """The global tensor; -1 where no sharded tensor lies."""
    whole = torch.full(shape, -1.0)
    for tensor in tensors:
        assert tensor.axis_fragmentations is None
        assert tensor.prepend_axis_num == 0
        region = whole[tensor.global_slice()]
        assert (region == -1).all()
        region.copy_(tensor.data)
    return whole


@pytest.mark.parametrize("cut", range(49))
def test_pieces_of_fused_halves_meet_in_the_global_tensor(cut: int) -> None:
    """The second of two layers, the second of two tensor parallel ranks: the local gate and up halves lie apart."""
    local = torch.arange(48.0).view(8, 6)
    offsets = ((0, 1, 2),)
    whole = ShardedTensor.from_rank_offsets("w", local, *offsets, (1, 1, 2), prepend_axis_num=1)
    factory = apply_swiglu_sharded_factory(whole, offsets)
    memory = local.flatten().clone()
    tensors = sharded_piece(factory, memory[:cut], 0, key="k") + sharded_piece(factory, memory[cut:], cut, key="k")
    assert {tensor.key for tensor in tensors} == {"k"}
    assert all(tensor.data.untyped_storage().data_ptr() == memory.data_ptr() for tensor in tensors)
    result = placed(tensors, (2, 16, 6))
    assert torch.equal(result[1, 4:8], local[:4])
    assert torch.equal(result[1, 12:16], local[4:])
    assert (result[0] == -1).all(), "the other layer"
    assert (result[1, :4] == -1).all(), "the other rank's gate"
    assert (result[1, 8:12] == -1).all(), "the other rank's up"
