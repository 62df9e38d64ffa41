"""Whether Triton runs. Modules that import Triton are imported only then: PyTorch for CPU comes without it."""

from __future__ import annotations

import os

from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on a CPU; Triton reads the variable when a kernel is defined."""


def runs_on_triton(tensor: Tensor) -> bool:
    """Whether work on this tensor goes to Triton: on CUDA always, on a CPU only with its interpreter."""
    return tensor.is_cuda or INTERPRETED
