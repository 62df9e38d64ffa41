"""What autograd gets for the LM head beside `main_grad`: zeros, or memory that nobody reads and nobody fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lpc_kernels import pair_logps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .pair_logps_cases import draw

TOKENS, VOCAB, HIDDEN_SIZE = 40, 21, 8
FILLING = ("clone", "copy_", "zeros", "new_zeros", "zero_", "fill_", "add_", "contiguous")


class Filled(TorchDispatchMode):
    """Counts the operations that write a tensor as large as the LM head, except into `main_grad`."""

    def __init__(self, main_grad: Tensor) -> None:
        super().__init__()
        self.main_grad = main_grad
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        is_large = isinstance(result, Tensor) and result.numel() == VOCAB * HIDDEN_SIZE
        if is_large and name in FILLING and result.data_ptr() != self.main_grad.data_ptr():
            self.operations.append(name)
        return result


def pair_loss(logps: Tensor, pairs: Tensor) -> Tensor:
    return (logps[:, 1] - logps[:, 0]).sum(0)


def backward(algorithm: str, **options: Any) -> tuple[Tensor, list[str], Tensor | None]:
    """The buffer, the filling operations of the backward pass, and the gradient of the LM head."""
    inputs = draw(TOKENS, VOCAB, HIDDEN_SIZE, 3, None, 6, torch.float32)
    buffer = torch.zeros(VOCAB, HIDDEN_SIZE)
    arguments = (inputs[name] for name in ("hidden", "lm_head_weight", "targets", "segment_ids"))
    loss = pair_logps(
        *arguments, 6, z=inputs["z"], pair_loss=pair_loss, algorithm=algorithm, main_grad=buffer, **options
    ).loss
    assert loss is not None
    with Filled(buffer) as watch:
        loss.backward()
    return buffer, watch.operations, inputs["lm_head_weight"].grad


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise"])
def test_memory_that_nobody_reads_is_not_filled(algorithm: str) -> None:
    buffer, operations, gradient = backward(algorithm, main_grad_only=True)
    assert not operations
    assert gradient is not None
    assert gradient.is_contiguous()
    zeros_buffer, operations, gradient = backward(algorithm)
    assert operations
    assert gradient is not None
    assert not gradient.any()
    assert torch.equal(buffer, zeros_buffer)


def test_a_gradient_that_goes_nowhere_is_refused() -> None:
    inputs = draw(TOKENS, VOCAB, HIDDEN_SIZE, 3, None, 6, torch.float32)
    call: Callable[..., Any] = pair_logps
    with pytest.raises(ValueError, match="main_grad_only needs main_grad"):
        call(**inputs, num_segments=6, main_grad_only=True)
