"""What all modules share."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor, nn

from transformer_engine.pytorch.quantization import FP8GlobalStateManager, dist_group_type


def get_dummy_wgrad(shape: list, dtype: torch.dtype, zero=False) -> Tensor:
    """A gradient that nobody may read, unless it must be zeros."""
    return torch.full(shape, 0.0 if zero else torch.nan, dtype=dtype)


class TransformerEngineBaseModule(nn.Module):
    """Keeps the recipe of the last forward pass, as its extra state in checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe = None
        self.tp_group = None

    def get_extra_state(self) -> Tensor:
        if self.recipe is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(pickle.dumps({"recipe": self.recipe})), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if state is not None and state.numel():
            self.recipe = pickle.loads(state.numpy().tobytes())["recipe"]

    def set_tensor_parallel_group(self, tp_group: dist_group_type | None) -> None:
        self.tp_group = tp_group

    def prepare_forward(self, inp: Tensor, dtype: torch.dtype) -> None:
        """What the real module does before each forward pass, as far as it may refuse."""
        assert inp.dtype == dtype, f"input {inp.dtype}, parameters {dtype}"
        self.recipe = FP8GlobalStateManager.get_fp8_recipe()
