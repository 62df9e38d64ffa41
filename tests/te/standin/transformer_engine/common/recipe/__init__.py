"""Recipes: how values become FP8."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch


class _FormatHelper(NamedTuple):
    forward: torch.dtype
    backward: torch.dtype


class Format(Enum):
    E4M3 = _FormatHelper(torch.float8_e4m3fn, torch.float8_e4m3fn)
    HYBRID = _FormatHelper(torch.float8_e4m3fn, torch.float8_e5m2)


class Recipe:
    pass


@dataclass
class DelayedScaling(Recipe):
    """megatron-core derives a class from it; nothing here computes with it."""


@dataclass
class Float8CurrentScaling(Recipe):
    fp8_format: Format = Format.HYBRID
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class MXFP8BlockScaling(Recipe):
    margin: int = 0
    fp8_format: Format = Format.E4M3
    fp8_dpa: bool = False
    fp8_mha: bool = False


@dataclass
class Float8BlockScaling(Recipe):
    fp8_format: Format = Format.E4M3
    fp8_dpa: bool = False
    fp8_mha: bool = False

    def __post_init__(self) -> None:
        assert not self.fp8_dpa and not self.fp8_mha, "FP8 attention is not supported for Float8BlockScaling."
