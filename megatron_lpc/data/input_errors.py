"""Mistakes of the user in tokenizers and data files, as the one kind of error that a user can correct."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megatron_lpc.config import ConfigError


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what tokenizers and data files raise for a mistake of the user into a `ConfigError`.

    They raise ValueError (of which `BadRow` is one), LookupError and OSError.
    """
    try:
        yield
    except (ValueError, LookupError, OSError) as error:
        raise ConfigError(str(error)) from error
