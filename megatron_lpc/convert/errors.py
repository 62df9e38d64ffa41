"""The one error of a conversion that its user can correct."""

from __future__ import annotations

from megatron_lpc.command_line import UserError


class ConversionError(UserError, ValueError):
    """The input cannot be converted, or the output cannot be written.

    The message names the file, setting or tensor, and what to do.
    """
