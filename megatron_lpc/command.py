"""What command lines share: where they print, and how they end when something is wrong that their user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console


def wide_console() -> Console:
    """Standard output; wide where it is no terminal, so that tables in files keep their words."""
    return Console() if sys.stdout.isatty() else Console(width=120)


@contextmanager
def exit_codes(codes: Mapping[type[Exception], int]) -> Iterator[None]:
    """These errors end the process with their exit code and, on rank 0, one message `error: …`; any other keeps its stack trace."""
    try:
        yield
    except tuple(codes) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(next(code for kind, code in codes.items() if isinstance(error, kind))) from error
