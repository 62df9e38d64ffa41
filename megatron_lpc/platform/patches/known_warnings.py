"""Warnings of megatron-core and torch that every process of every run would print, and that ask for nothing."""

from __future__ import annotations

import warnings

from megatron_lpc.platform.patches.patch import MEGATRON_CORE, patch

KNOWN_WARNINGS = (
    # Extensions that the portable layers do without.
    "(Transformer Engine and )?Apex (is|are) not installed",
    # Options of megatron-core that are not used here.
    "full scope is deprecated",
    "When using async grad allreduce",  # `start_distributed` warns where it matters.
    # Calls that megatron-core and torch.distributed make within themselves.
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
    "`torch.distributed.all_gather_into_tensor` is deprecated",  # Its new name came with torch 2.13; we support 2.11.
)
"""Regular expressions of the beginnings of the messages."""

_MODULES = r"(megatron\.core|torch\.distributed\.(checkpoint|c10d_logger))"


@patch(*MEGATRON_CORE, symptom="Each process prints a dozen warnings of libraries before its first line of progress.")
def silence_known_warnings() -> None:
    """Ignore these messages where those modules raise them; every other warning stays visible.

    Must come before the first import of megatron-core, which raises some of them.
    """
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, module=_MODULES)
