"""Ranges of numeric options: both ends of each."""

import pytest

from megatron_lpc.config import ConfigError, validate
from megatron_lpc.config.kinds import is_numeric, split_optional, takes_many
from megatron_lpc.config.metadata import Role, option
from megatron_lpc.config.options import all_options

RANGES = {name: each.range for name, each in all_options().items() if each.range is not None}


def test_every_numeric_option_has_a_range():
    numeric = {name for name, each in all_options().items() if is_numeric(each.kind)}
    assert set(RANGES) == numeric


@pytest.mark.parametrize("name", RANGES)
def test_values_outside_of_each_range_are_refused(problems, name):
    each, interval = all_options()[name], RANGES[name]
    low, high = interval[1:-1].split(", ")
    outside = [float(low) - 1] + ([float(low)] if interval[0] == "(" else [])
    if high != "inf":
        outside += [float(high) + 1] + ([float(high)] if interval[-1] == ")" else [])
    whole = split_optional(each.kind)[0] in (int, list[int])
    for value in outside:
        text = str(int(value)) if whole else str(value)
        flags = f"{each.flag} {text}" if takes_many(each.kind) else f"{each.flag}={text}"
        assert problems(flags) == [f"{each.flag} {text}: must be in {interval}"]


@pytest.mark.parametrize("name", RANGES)
def test_defaults_and_closed_ends_are_inside(config_of, name):
    each, interval = all_options()[name], RANGES[name]
    ends = [interval[1:-1].split(", ")[side] for side, bracket in ((0, "["), (1, "]")) if interval[-side] == bracket]
    for end in ends:
        try:
            validate(config_of(f"{each.flag} {end}"), 1)
        except ConfigError as error:
            assert "must be in" not in str(error)  # noqa: PT017 other rules may well refuse it


@pytest.mark.parametrize("text", ["1, inf", "[1,2]", "[a, b]", "[1, inf", ""])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(ValueError, match="is not an interval"):
        option(1, range=text, role=Role.RUN)
