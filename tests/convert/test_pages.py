"""Memory of joined tensors is used again, and never while somebody holds it."""

from __future__ import annotations

import torch

from megatron_lpc.convert.pages import recycled

SHAPE = (600, 1001)


def test_memory_is_used_again_when_no_view_is_left() -> None:
    first = recycled(SHAPE, torch.float32).fill_(1.0)
    where = first.data_ptr()
    view = first[3:5]
    del first
    other = recycled(SHAPE, torch.float32)
    assert other.data_ptr() != where
    other.fill_(2.0)
    assert torch.equal(view, torch.ones_like(view))
    del view
    assert recycled(SHAPE, torch.float32).data_ptr() == where
    assert recycled((3,), torch.bfloat16).shape == (3,)
