"""A configuration from flags, and what its validation refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from megatron_lpc.config import Config, ConfigError, parse_args, validate


@pytest.fixture
def config_of() -> Callable[[str], Config]:
    """Flags in one string -> configuration with data and tokenizer."""

    def config_of(flags: str = "") -> Config:
        return parse_args(["--train-data", "a.jsonl", "--tokenizer-model", "tokenizer", *flags.split()])

    return config_of


@pytest.fixture
def problems(config_of: Callable[[str], Config]) -> Callable[..., list[str]]:
    """Lines of the error with which validation refuses flags."""

    def problems(flags: str, world_size: int = 1, device_type: str | None = None) -> list[str]:
        with pytest.raises(ConfigError) as error:
            validate(config_of(flags), world_size, device_type)
        return str(error.value).splitlines()

    return problems
