"""Norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from transformer_engine.checked import checked


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered_gamma: bool) -> Tensor:
    """In fp32, rounded to the dtype of x."""
    gamma = weight.float() + 1 if zero_centered_gamma else weight.float()
    return nn.functional.rms_norm(x.float(), weight.shape, gamma, eps).to(x.dtype)


class RMSNorm(nn.Module):
    @checked
    def __init__(
        self,
        normalized_shape: Iterable[int] | int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__()
        assert set(kwargs) <= {"device", "dtype", "sm_margin"}, kwargs
        assert (normalized_shape is None) != (hidden_size is None)
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        gamma = torch.full(
            (hidden_size or normalized_shape,),
            float(not zero_centered_gamma),
            dtype=params_dtype,
            device=kwargs.get("device", "cuda"),
        )
        self.weight = nn.Parameter(gamma)
        if sequence_parallel is not None:
            self.weight.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.zero_centered_gamma)

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass


class LayerNorm:
    """Named by megatron-core; this project's models have none."""
