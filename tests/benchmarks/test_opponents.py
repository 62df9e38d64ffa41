"""Losses of other libraries have the value and the gradients of plain PyTorch's.

Liger-Kernel's vocabulary-parallel loss takes CUDA tensors only: its fallback in PyTorch runs here with that check taken
away, where the library is installed; a stand-in with its signature runs everywhere.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.kernels import library_providers, pair_providers
from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.pair_inputs import PairInputs
from benchmarks.kernels.step import Step

Gradients = tuple[Tensor, ...]


class StandIn:
    """`LigerFusedLinearScaledCrossEntropyTPFunction` of liger-kernel 0.8.5: its signature, and its result."""

    @staticmethod
    def apply(
        _input,
        weight,
        target,
        tp_group,
        temperature=1.0,
        ignore_index=-100,
        tiles_per_reduce=1,
        return_entropy=False,
    ):
        assert isinstance(tp_group, dist.ProcessGroup)
        assert (temperature, tiles_per_reduce, return_entropy) == (1.0, 1, False)
        logits = (_input @ weight.t()).float()
        return cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")


@pytest.fixture
def no_group() -> Iterator[None]:
    """Leaves no process group behind for other tests of this worker."""
    before = dist.is_initialized()
    yield
    if dist.is_initialized() and not before:
        dist.destroy_process_group()


def loss_and_gradients(
    provider: Callable[[PairCase], Step], case: PairCase, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Gradients]:
    """What the step of a provider computes."""
    seen: list[tuple[Tensor, Gradients]] = []

    def pair_step(case: PairCase, inputs: PairInputs, loss: Callable[[PairInputs], Tensor]) -> Step:
        value = loss(inputs)
        seen.append((value, torch.autograd.grad(value, (inputs.hidden, inputs.lm_head_weight, inputs.z))))
        return lambda: value

    for module in (library_providers, pair_providers):
        monkeypatch.setattr(module, "pair_step", pair_step)
    provider(case)
    return seen[0]


def assert_as_pytorch(provider: Callable[[PairCase], Step], monkeypatch: pytest.MonkeyPatch) -> None:
    size: dict[str, Any] = {"model": "16x40", "tokens": 24, "response": 4, "latents": 2, "tp": 2, "chunk_size": 16}
    case = PairCase(device="cpu", dtype=torch.float32, direction="training", masked=0.25, **size)
    expected, expected_gradients = loss_and_gradients(pair_providers.PROVIDERS["pytorch"], case, monkeypatch)
    got, gradients = loss_and_gradients(provider, case, monkeypatch)
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_liger_vocabulary_parallel_as_a_stand_in(monkeypatch: pytest.MonkeyPatch, no_group: None) -> None:
    module = ModuleType("liger_kernel.ops")
    module.LigerFusedLinearScaledCrossEntropyTPFunction = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", module)
    assert_as_pytorch(library_providers.liger_tp, monkeypatch)


def test_liger_vocabulary_parallel(monkeypatch: pytest.MonkeyPatch, no_group: None) -> None:
    source = pytest.importorskip("liger_kernel.ops.fused_linear_scaled_cross_entropy", reason="Liger-Kernel is absent")
    real = source.LigerFusedLinearScaledCrossEntropyTPFunction
    assert str(inspect.signature(real.apply)) == str(inspect.signature(StandIn.apply))
    monkeypatch.setattr(source, "_validate_tp_inputs", lambda *_: None)
    assert_as_pytorch(library_providers.liger_tp, monkeypatch)


@pytest.mark.slow
def test_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="TRL is absent")
    assert_as_pytorch(library_providers.trl, monkeypatch)
