"""What all programs share: one kind of error for what a user can correct, and one way in which it ends a program."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(Exception):
    """An error that the user can correct; the message says what is wrong and what to do."""

    exit_code = 2


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def warn(message: str) -> None:
    """Print `warning: ...` on standard error, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


@contextmanager
def reports_errors() -> Iterator[None]:
    """A `UserError` ends the process with its `exit_code` and, on rank 0, one message `error: ...`.

    Any other exception keeps its stack trace.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
