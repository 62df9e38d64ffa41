"""Frozen weights in host memory; a CPU stands in for the GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megatron_lpc.training.offload import OffloadedWeights

CPU = torch.device("cpu")


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> nn.Linear:
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    linear = nn.Linear(3, 2).requires_grad_(False)
    linear.register_parameter("tied", linear.weight)
    return linear


def places(chunk: nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in chunk.parameters()]


def test_weights_are_on_the_device_within_a_pass_only_and_never_copied_back(chunk: nn.Linear) -> None:
    expected = {name: parameter.clone() for name, parameter in chunk.named_parameters()}
    first = places(chunk)
    weights = OffloadedWeights(chunk.parameters(), CPU)
    on_host = places(chunk)
    assert not set(on_host) & set(first)
    for _ in range(2):
        with weights.on_device():
            assert not set(places(chunk)) & set(on_host)
            torch.testing.assert_close(dict(chunk.named_parameters()), expected, rtol=0, atol=0)
        assert places(chunk) == on_host
        assert chunk.tied is chunk.weight
    torch.testing.assert_close(dict(chunk.named_parameters()), expected, rtol=0, atol=0)


def test_a_pass_that_fails_leaves_the_weights_on_the_host(chunk: nn.Linear) -> None:
    weights = OffloadedWeights(chunk.parameters(), CPU)
    on_host = places(chunk)
    with pytest.raises(RuntimeError, match="out of memory"), weights.on_device():
        raise RuntimeError("out of memory")
    assert places(chunk) == on_host
