"""megatron-core's optimizers, which know parameters by the names of CUDA tensor types."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch, replace

_DEVICE = re.compile(r"^torch\.(cuda\.)?(meta\.)?")


@patch(
    *MEGATRON_CORE, symptom="megatron-core's optimizers refuse parameters whose type is not `torch.cuda.FloatTensor`."
)
def accept_cpu_tensor_types() -> None:
    """Let `tensor.type()` give the CUDA names while megatron-core's optimizers sort and check their parameters.

    They compare the strings `torch.cuda.FloatTensor`, `torch.cuda.HalfTensor` and `torch.cuda.BFloat16Tensor`: the
    constructors of the optimizers with master weights, and gradient clipping.
    """
    from megatron.core.optimizer import clip_grads, distrib_optimizer, optimizer

    clip = _cuda_type_names()(clip_grads.clip_grad_by_total_norm_fp32)
    replace(clip_grads, "clip_grad_by_total_norm_fp32", clip)
    replace(optimizer, "clip_grad_by_total_norm_fp32", clip)
    for cls in (optimizer.Float16OptimizerWithFloat16Params, distrib_optimizer.DistributedOptimizer):
        replace(cls, "__init__", _cuda_type_names()(cls.__init__))


@contextlib.contextmanager
def _cuda_type_names() -> Iterator[None]:
    """Within, `tensor.type()` answers `torch.cuda.FloatTensor` for `torch.FloatTensor` and `torch.meta.FloatTensor`."""
    original = torch.Tensor.type

    def named(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        return _DEVICE.sub("torch.cuda.", answer) if isinstance(answer, str) else answer

    torch.Tensor.type = named  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]
