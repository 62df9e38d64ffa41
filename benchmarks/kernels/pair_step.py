"""A step of a preference loss: forward, and backward where the case is of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.pair_case import PairCase
from benchmarks.kernels.pair_inputs import PairInputs
from benchmarks.kernels.step import Step


def pair_step(case: PairCase, inputs: PairInputs, loss: Callable[[PairInputs], Tensor]) -> Step:
    """The step that computes `loss` of these inputs, and its gradients of all that want one."""
    candidates = (inputs.hidden, inputs.lm_head_weight, inputs.z)
    wanted = [tensor for tensor in candidates if tensor.requires_grad]

    def step() -> Tensor:
        with torch.set_grad_enabled(case.direction == "training"):
            value = loss(inputs)
        if wanted:
            torch.autograd.grad(value, wanted)
        return value.detach()

    return step
