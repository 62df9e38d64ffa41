"""Where FP8 is switched on, and how values are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from transformer_engine.checked import checked
from transformer_engine.common.recipe import Recipe

dist_group_type = torch.distributed.ProcessGroup


class FP8GlobalStateManager:
    _recipe: Recipe | None = None

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls._recipe is not None

    @classmethod
    def get_fp8_recipe(cls) -> Recipe | None:
        return cls._recipe


@checked
@contextmanager
def fp8_autocast(
    enabled: bool = True,
    calibrating: bool = False,
    fp8_recipe: Recipe | None = None,
    fp8_group: dist_group_type | None = None,
    _graph: bool = False,
) -> Iterator[None]:
    before = FP8GlobalStateManager._recipe
    FP8GlobalStateManager._recipe = fp8_recipe if enabled else None
    try:
        yield
    finally:
        FP8GlobalStateManager._recipe = before


def fp8_model_init(
    enabled: bool = True, recipe: Recipe | None = None, preserve_high_precision_init_val: bool = False
) -> None:
    raise NotImplementedError("the parameters of this project stay in bfloat16")


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x with the precision of an FP8 dtype under one scale for the whole tensor."""
    amax = x.abs().amax().float()
    scale = torch.finfo(dtype).max / torch.where(amax > 0, amax, 1.0)
    return ((x.float() * scale).to(dtype).float() / scale).to(x.dtype)
