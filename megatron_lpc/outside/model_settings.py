"""Numbers in a config.json: transformers makes a list or a dictionary of as many entries as some of them say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_lpc.outside.messages import Malformed, brief

MAX_COUNT = 2**17
"""Of layers, labels, experts and heads: the largest published models have a fifth of that, experts of all layers."""


def check_sizes(settings: Mapping[str, Any], what: str, place: str = "") -> None:
    """Refuse numbers of which transformers would make lists that fill the memory.

    Args:
        what: the file, for the message.
        place: of the settings in it: `text_config.` for instance.

    Raises:
        Malformed: one is too large; names it.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            check_sizes(value, what, f"{place}{name[:60]}.")
        is_count = name.startswith("num_") or name.endswith(("_layers", "_labels"))
        if is_count and type(value) is int and abs(value) >= MAX_COUNT:
            raise Malformed(f"{what}: {place}{name[:60]}: must be below {MAX_COUNT:,}, got {brief(value)}")
