"""Tensors in huge pages are as any other."""

from __future__ import annotations

import gc

import pytest
import torch
from lpc_kernels.huge_pages import in_huge_pages


@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (1031, 1031)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_that_last_as_long_as_the_tensor(shape, dtype):
    zeros = in_huge_pages(torch.zeros, shape, dtype, torch.device("cpu"))
    assert zeros.shape == shape
    assert zeros.dtype == dtype
    assert zeros.is_contiguous()
    assert not zeros.any()
    view = zeros.add_(1)[-1:]
    del zeros
    gc.collect()
    others = [in_huge_pages(torch.zeros, shape, dtype, torch.device("cpu")) for _ in range(3)]
    assert (view == 1).all()
    assert not any(other.any() for other in others)
