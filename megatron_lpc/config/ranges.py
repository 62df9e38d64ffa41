"""The range of every numeric option, in the notation of intervals; each stands beside its field in the schema."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from megatron_lpc.config.options import all_options
from megatron_lpc.config.schema import Config


def out_of_range(config: Config) -> Iterator[str]:
    """A sentence for every number outside of its option's range; unset options are not looked at."""
    for option in all_options().values():
        value = option.value(config)
        if option.range is None or value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if not inside(number, option.range):
                yield f"{option.flag} {number}: must be in {option.range}"


def inside(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as `(0, 1]`."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low or (value == low and interval[0] == "[")
    below = value < high or (value == high != inf and interval[-1] == "]")
    return above and below
