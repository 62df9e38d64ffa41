"""What a provider is: a function that takes a case and returns a step to measure."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Step = Callable[[], Tensor]
"""Runs the measured work once, without arguments, and returns its loss."""


class Unavailable(Exception):
    """Why a provider cannot run here."""
