"""Where tensors of a training step must be and in which precision, whatever operator they take part in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from host_waits import calling_line
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_lpc.training.optimizer_state import stateful_parts
from megatron_lpc.training.policy import TrainablePolicy

_MOVES = ("_to_copy", "copy_", "device", "lift_fresh", "empty", "empty_like", "detach")
"""Operators that bring tensors from or to the host, or make memory for that."""
_FIRST_FACTOR = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
"""Matrix products, and the place of the first of their two factors among the arguments."""
_ON_HOST = (
    "CachedReference._of",  # Log-probs of a batch, before they are copied to the device.
    *("MetricReducer.", "finish_metrics", "TrainStep._speed"),  # Metrics, after the one wait.
    "CudaRNGStatesTracker.fork",  # Of megatron-core, which compares states of the host's generator.
    "MoEAlltoAllTokenDispatcher.",  # Of megatron-core, which splits by counts on the host.
    "Attention._checkpointed_attention_forward",  # Of megatron-core, which keeps the kind of mask in a tensor.
)
"""Functions that compute on the host by design."""
_IN_FP32 = (
    "Gradients._finish_latents",  # A product over the few pairs of a micro-batch.
    *("PreferenceModel._preprocess", "RotaryEmbedding.", "_apply_rotary_pos_emb_bshd"),  # Rotary angles.
)
"""Functions that compute in fp32 by design."""


class TensorChecks(TorchDispatchMode):
    """Collects what is on the wrong device or in the wrong precision, each with the line that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, None] = {}
        self.activation_elements: int | None = None
        """Elements of a hidden state of this rank; None: precision is not checked."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name not in _MOVES and any(_is_host_tensor(x) for x in inputs + results):
            self._report(f"{name} of a tensor on the host", _ON_HOST)
        if self.activation_elements is None:
            return result
        first = _FIRST_FACTOR.get(name)
        if first is not None and any(_is_wide(x) for x in args[first : first + 2]):
            self._report(f"{name} in {args[first].dtype}", _IN_FP32)
        if any(_is_wide(x) and x.dim() >= 3 and x.numel() >= self.activation_elements for x in results):
            self._report(f"activation in {results[0].dtype} from {name}", _IN_FP32)
        return result

    def _report(self, problem: str, by_design: tuple[str, ...]) -> None:
        line = calling_line()
        if not any(function in line for function in by_design):
            self.problems[f"{problem}, at {line}"] = None


def wrong_state(policy: TrainablePolicy) -> list[str]:
    """What is not as training in bf16 has it: weights in bf16, gradients, master weights and moments in fp32."""
    found = {}
    for chunk in policy.chunks:
        for name, weight in chunk.named_parameters():
            found[f"weight {name}"] = (weight, torch.bfloat16)
            if weight.requires_grad:
                found[f"gradient of {name}"] = (weight.main_grad, torch.float32)
    for part in stateful_parts(policy.optimizer):
        adam = part.optimizer
        for group in adam.param_groups:
            assert group["fused"], "AdamW is not fused"
            assert not group["foreach"], "AdamW copies its parameters"
            found |= {f"master weight {tuple(weight.shape)}": (weight, torch.float32) for weight in group["params"]}
        for state in adam.state.values():
            found |= {f"{name} {tuple(value.shape)}": (value, torch.float32) for name, value in state.items()}
    return [
        f"{name} is {tensor.dtype} on {tensor.device}"
        for name, (tensor, dtype) in found.items()
        if tensor.dtype != dtype or not tensor.is_cuda
    ]


def wrong_loss(total: Tensor, metrics: dict[str, Tensor]) -> list[str]:
    """A loss that is not fp32, metrics that are not fp64 or counts, and what is on the host."""
    accepted = dict.fromkeys(metrics, (torch.float64, torch.int64)) | {"total": (torch.float32,)}
    return [
        f"{name} of the loss is {tensor.dtype} on {tensor.device}"
        for name, tensor in {**metrics, "total": total}.items()
        if tensor.dtype not in accepted[name] or not tensor.is_cuda
    ]


def _is_host_tensor(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dim() > 0


def _is_wide(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64)
