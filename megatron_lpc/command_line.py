"""What all programs share: the error that a user can correct, how it ends a program, and how messages name things."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from megatron_lpc.outside.messages import cleaned


class UserError(Exception):
    """An error that the user can correct; the message says what is wrong and what to do.

    What it quotes is shown as `cleaned` shows it.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(cleaned(str(message)))


class WriteFailed(UserError):
    """Something could not be written; the message has path and cause."""

    exit_code = 1
    is_known_elsewhere = False
    """Another rank has the cause, and says it."""

    @classmethod
    def of(cls, path: object, error: OSError) -> WriteFailed:
        """From what the operating system says."""
        return cls(f"{path}: cannot be written ({error.strerror})")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are raised as `error_class`."""

    def __init__(self, *args: Any, error_class: type[UserError] = UserError, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._error_class = error_class

    def error(self, message: str) -> NoReturn:
        raise self._error_class(message)


def is_first_rank() -> bool:
    """Whether this process reports for all: rank 0 of a run, or a process that torchrun did not start."""
    return os.environ.get("RANK", "0") == "0"


def flag_of(name: str) -> str:
    """The flag of an option: `--rotary-base` of `rotary_base`."""
    return "--" + name.replace("_", "-")


def first_few(names: Sequence[str], kind: str) -> str:
    """The first three names, and how many more of their `kind` (a plural) there are."""
    first = ", ".join(names[:3])
    num_others = len(names) - 3
    return f"{first} and {num_others} more {kind}" if num_others > 0 else first


def warn(message: str) -> None:
    """Print `warning: ...` on standard error, on rank 0 only."""
    if is_first_rank():
        print(f"warning: {cleaned(message)}", file=sys.stderr)


@contextmanager
def reports_errors() -> Iterator[None]:
    """A `UserError` ends the process with its `exit_code` and, on rank 0, one message `error: ...`.

    Ctrl-C ends it with 130 and the word `interrupted`. Any other exception keeps its stack trace.
    """
    try:
        yield
    except KeyboardInterrupt:
        if is_first_rank():
            print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except UserError as error:
        if is_first_rank():
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
